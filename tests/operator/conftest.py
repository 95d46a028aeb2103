"""The real operator on the in-process sandbox, whose clock moves when the operator sleeps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bruno.operator.service import Operator
from bruno.sandbox import Clock, running_sandbox
from bruno.settings.console import Settings
from bruno.settings.paths import Paths


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Operator, object]]:
    for name in ("VAST_API_KEY", "HF_TOKEN", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    paths = Paths(home=tmp_path / "home", config=tmp_path / "config.toml")
    with running_sandbox(tmp_path / "sandbox", clock=Clock.frozen()) as sandbox:
        operator = Operator(
            Settings(),
            paths,
            api_key=sandbox.info.api_key,
            url=sandbox.info.url,
            clock=lambda: datetime.now(UTC),
            sleep=lambda seconds: sandbox.control.advance(seconds) and None,
        )
        yield operator, sandbox.control
        operator.close()
