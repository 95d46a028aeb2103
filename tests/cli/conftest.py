"""A state folder of its own for every test; nobody's settings or keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from bruno.cli import main, session
from tests.tui.scripted import ScriptedOperator


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VAST_API_KEY", "BRUNO_CONFIG", "BRUNO_KEYMAP", "HF_TOKEN", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Said:
    """What one command line answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def bruno(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process."""

    def run(*arguments: str) -> Said:
        code = main(arguments)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> ScriptedOperator:
    """The service that every command gets in this test."""
    scripted = ScriptedOperator()
    monkeypatch.setattr(session, "open_operator", lambda flags: scripted)
    return scripted
