"""The study as a source of its own: how many trials it holds, never what they scored."""

from __future__ import annotations

import subprocess
from pathlib import Path

import optuna
import pytest

from bruno.engine.folder import STUDY_FILE
from bruno.fleet.link import Completed
from bruno.runs.evidence import COMPLETE, STUDY, Item, _count, _disputes


class Here:
    """Runs a command on this machine, as the link does on another."""

    def run(self, argv: list[str], *, timeout: float) -> Completed:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout)
        return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)


def study(path: Path, name: str = "demo", complete: int = 3) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(storage=f"sqlite:///{path}", study_name=name, directions=["minimize", "minimize"])
    for _ in range(complete):
        made.tell(made.ask(), (0.8125, 0.1))
    return made


def test_the_engine_and_the_evidence_name_one_file() -> None:
    assert STUDY == STUDY_FILE


def test_only_complete_trials_are_counted_and_nothing_is_written(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.sqlite3", tmp_path / "a study?#%.sqlite3"
    made = study(plain)
    made.tell(made.ask(), state=optuna.trial.TrialState.FAIL)
    made.ask()
    plain.rename(path)
    before = path.read_bytes()
    assert _count(Here(), str(path)) == Item(COMPLETE, 3, "study", str(path))  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("what", ["missing", "two", "broken", "empty"])
def test_what_cannot_be_counted_is_unknown(tmp_path: Path, what: str) -> None:
    path = tmp_path / "study.sqlite3"
    if what == "two":
        study(path), study(path, "other")
    elif what != "missing":
        path.write_bytes(b"" if what == "empty" else b"hello " * 1000)
    item = _count(Here(), str(path))  # type: ignore[arg-type]
    assert item.value is None
    assert item.note


def test_a_study_that_is_ahead_while_trials_run_is_no_dispute() -> None:
    items = [Item(COMPLETE, 56, "log"), Item(COMPLETE, 57, "study")]
    assert _disputes(items, moving=True) == []
    assert _disputes(items, moving=False) == ["trials complete: the log says 56, the study says 57"]
