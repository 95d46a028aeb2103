"""Shared storage: who reads waits for nobody, who takes a trial waits for who takes one, a draw is stored whole."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy.event
from optuna.trial import TrialState

from bruno.engine.search.board import Board, deal, fail_silent, look
from bruno.engine.search.rdb import together
from bruno.engine.search.storage import join_study, open_study
from bruno.engine.search.study import finished_trials
from tests.engine.search.one_worker import BEAT, SPACE
from tests.engine.search.test_shared import FINGERPRINT, opened, plan, postgres, storage  # noqa: F401


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "study.sqlite3")


def test_reads_do_not_wait_for_a_writer(path):
    study = opened(path)
    deal(study, plan(trials=2), Board())
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert sorted(look(study, 2).waiting) == [0, 1]
    assert finished_trials(join_study(path, "s", heartbeat=BEAT)) == []
    fail_silent(study)
    assert study._storage._backend.get_trial(1).state == TrialState.WAITING
    # Taking one does: the writer may be about to take it.
    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(study.ask)
        writer.execute("UPDATE trials SET state = 'RUNNING' WHERE trial_id = 1")
        writer.execute("COMMIT")
        assert taking.result(timeout=60)._trial_id == 2
    writer.close()


def test_only_methods_that_write_begin_as_writers(path):
    study, began = opened(path), []
    deal(study, plan(trials=1), Board())
    engine = study._storage._backend.engine
    sqlalchemy.event.listen(
        engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: began.append(statement.split()[0:2]),
    )
    trial = study.ask()
    with together(study):
        SPACE.suggest(trial)
    study.tell(trial, [0.5, 0.5])
    look(study, 1)
    transactions, kinds = [], {"INSERT", "UPDATE", "DELETE"}
    for words in began:
        if words[0] == "BEGIN":
            transactions.append((words == ["BEGIN", "IMMEDIATE"], []))
        else:
            transactions[-1][1].append(words[0])
    assert transactions
    for as_writer, statements in transactions:
        assert as_writer == bool(kinds & set(statements))


def test_a_draw_is_stored_whole_or_not_at_all(storage):  # noqa: F811
    study = opened(storage)
    deal(study, plan(trials=3), Board())
    other, commits = open_study(storage, "s", FINGERPRINT, heartbeat=BEAT), []
    first, second = study.ask(), study.ask()
    sqlalchemy.event.listen(study._storage._backend.engine, "commit", commits.append)
    with together(study):
        drawn = SPACE.suggest(first)
        assert other.get_trials()[0].params == {}
        commits.clear()
    assert len(commits) == 1
    assert study.get_trials()[0].params == other.get_trials()[0].params == first.params == drawn
    with pytest.raises(ValueError, match="cut"), together(study):
        SPACE.suggest(second)
        raise ValueError("cut")
    assert other.get_trials()[1].params == {}
    study.ask().suggest_float("direction_index", *SPACE.ranges()["direction_index"])  # by itself again
    assert list(other.get_trials()[2].params) == ["direction_index"]
