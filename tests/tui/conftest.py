"""The console over a scripted operator, with a fixed clock, a fixed time zone and a state folder of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bruno.settings.paths import Paths
from bruno.tui.app import BrunoApp
from tests.tui.scripted import NOW, ScriptedOperator


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def operator() -> ScriptedOperator:
    return ScriptedOperator()


@pytest.fixture
def make_app(tmp_path: Path, operator: ScriptedOperator) -> Callable[..., BrunoApp]:
    """A console whose questions can be answered at once; `arm_seconds` is what the tests of the gate are about."""

    def make(*, arm_seconds: float = 0.0, **options: object) -> BrunoApp:
        app = BrunoApp(
            lambda: operator,  # type: ignore[arg-type, return-value]
            paths=Paths(home=tmp_path, config=tmp_path / "config.toml"),
            clock=lambda: NOW,
            **{"sandbox": True, "poll_seconds": 0.2} | options,  # type: ignore[arg-type]
        )
        app.arm_seconds = arm_seconds
        return app

    return make
