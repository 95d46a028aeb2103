"""A sandbox per test, and an environment of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bruno.sandbox import Clock, running_sandbox
from tests.sandbox.kit import Cloud, make_key, sdk


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's gets into a test, and nothing of a test's out."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        folder = tmp_path / "user" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("VASTAI_NO_UPDATE_CHECK", "1")
    monkeypatch.setenv("VAST_LOG_LEVEL", "error")
    monkeypatch.delenv("VAST_API_KEY", raising=False)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A sandbox whose clock stands still until the test moves it, with an SSH key on the account."""
    with running_sandbox(tmp_path / "sandbox", clock=Clock.frozen()) as sandbox:
        key, public_key = make_key(tmp_path)
        vast = sdk(sandbox.info)
        vast.create_ssh_key(public_key)
        yield Cloud(sandbox.info, sandbox.control, vast, key, public_key)
        sandbox.control.shutdown(stop_instances=True)
