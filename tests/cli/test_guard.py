"""`bruno guard` explains, and its exit code is the verdict."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from bruno.cli import main
from bruno.guard.bench import BOMBS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "verdict", "code"),
    [
        ("ls -la", "allow", 0),
        ("rm -rf build", "typed_yes", 4),
        ("rm -rf /", "refuse", 3),
        ('ssh box "sudo rm -rf /data"', "typed_yes", 4),
        ("vastai destroy instance 101", "typed_yes", 4),
    ],
)
def test_check(command: str, verdict: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "check", command]) == code
    assert capsys.readouterr().out.startswith(f"{verdict}: ")
    assert main(["guard", "check", command, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_dash_reads_one_command_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ls\nrm -rf x\n"))
    assert main(["guard", "check", "-"]) == 0
    verdicts = [json.loads(line)["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == ["allow", "typed_yes"]


def test_examples_hold_and_a_wrong_own_file_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "test"]) == 0
    (home / "guardrails").mkdir()
    (home / "guardrails" / "budgets.toml").write_text("max_dph = 'many'\n")
    assert main(["guard", "test"]) == 1
    assert "budgets.toml" in capsys.readouterr().out
    assert main(["guard", "rules"]) == 1


def test_bench_counts_the_examples_and_times_the_bombs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "bench", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["failing_examples"] == figures["bombs_allowed"] == figures["phrases"]["missed"] == 0
    counted = figures["examples"]
    assert counted["commands"] == sum(counted[name] for name in ("allow", "ask", "typed_yes", "refuse")) > 1000
    assert set(figures["bombs_ms"]) == set(BOMBS)
    assert {"p50_ms", "p99_ms", "max_ms", "worst_bomb_ms"} <= set(figures)
    assert main(["guard", "bench"]) == 0
    assert "bombs_ms: substitutions " in capsys.readouterr().out


def test_a_push_goes_to_the_remote_of_the_settings(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["guard", "check", "git push origin main"]) == 4
    assert main(["guard", "check", "git push upstream main"]) == 3
    assert "only to the remote named in the settings (origin)" in capsys.readouterr().out
    (home / "config.toml").write_text('[guard]\ngit_remote = "upstream"\n')
    assert main(["guard", "check", "git push upstream main"]) == 4
    assert main(["guard", "check", "git push origin main"]) == 3
    monkeypatch.setenv("BRUNO_GUARD__GIT_REMOTE", "")
    assert main(["guard", "check", "git push anywhere main"]) == 4
