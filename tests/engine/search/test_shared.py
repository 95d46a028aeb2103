"""One study and many workers, on a real PostgreSQL server and on SQLite: nothing lost, nothing counted twice, whoever
dies."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from bruno.engine.events import Notice, Progress, TrialFailed, TrialScored, TrialStarted
from bruno.engine.search import shared
from bruno.engine.search.board import Board, deal, drawn_by, fail_silent, look
from bruno.engine.search.heartbeats import Heartbeats
from bruno.engine.search.shared import Worker
from bruno.engine.search.space import Space
from bruno.engine.search.storage import RETRIES, StudyMismatch, check_fingerprint, join_study, open_study
from bruno.engine.search.study import Plan, Stop, finished_trials, search
from bruno.errors import BrunoError, InputError
from tests.engine.postgres import PASSWORD, server
from tests.engine.search.one_worker import BEAT, SPACE, TRIALS, bowl

FINGERPRINT = {"model": "m", "search prompts": "p"}
SETTINGS = {"search": {"heartbeat": BEAT}}


@pytest.fixture(scope="module")
def postgres():
    with server() as started:
        yield started


@pytest.fixture(params=["postgres", "sqlite"])
def storage(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "study.sqlite3")
    return request.getfixturevalue("postgres").new_database(f"d{abs(hash(request.node.name))}")


def plan(trials=20, batch=1, **more):
    return Plan(trials=trials, batch=batch, startup=6, seed=3, **more)


def opened(storage):
    return open_study(storage, "s", FINGERPRINT, heartbeat=BEAT, settings=SETTINGS)


def worker(study, evaluate=bowl, *, dealer=True, name="w", events=None, stop=None, **settings):
    events = events if events is not None else []

    def score(edits, known):
        return evaluate(edits, 0, known)

    return Worker(study, SPACE, score, plan(**settings), events.append, stop or Stop(), name, BEAT, dealer, patience=60)


def assert_whole(study, trials):
    """Every index has exactly one result, and the one that its parameters give."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert Counter(trial.user_attrs["index"] for trial in complete) == Counter(range(trials))
    for trial in finished_trials(study):
        assert trial.scores == bowl([SPACE.edit(trial.parameters)], 0)[0]


def child(storage, name, *what, module="one_worker"):
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.engine.search.{module}", name, *map(str, what)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TEST_STORAGE": storage},
    )


def until(process, word):
    for line in process.stdout:
        if word in line:
            return line
    pytest.fail(f"{word} was never said")


def test_four_workers_one_killed_and_one_frozen_lose_and_double_nothing(storage):
    study = opened(storage)
    deal(study, plan(trials=TRIALS), Board())
    killed, frozen = child(storage, "killed", 30), child(storage, "frozen", 0.05, 2)
    until(killed, "scoring")
    killed.kill()
    until(frozen, "scoring")
    until(frozen, "scoring")  # at its second batch it stops itself
    others = [child(storage, "a"), child(storage, "b")]
    said = {process: process.communicate(timeout=60)[0] for process in others}
    assert_whole(study, TRIALS)
    before = {trial.index: trial for trial in finished_trials(study)}
    frozen.send_signal(signal.SIGCONT)
    said[frozen] = frozen.communicate(timeout=60)[0]
    assert killed.wait() == -signal.SIGKILL
    # What the frozen one brings is refused: the study is as it was, and it says so.
    assert {trial.index: trial for trial in finished_trials(study)} == before
    assert_whole(study, TRIALS)
    assert said[frozen].count("was given to another worker while this one was silent") == 2
    scored = [int(text.splitlines()[-1].removeprefix("whole ")) for text in said.values()]
    assert sum(scored) == TRIALS
    retried = [trial for trial in study.get_trials() if trial.system_attrs.get("failed_trial") is not None]
    # The killed one and the frozen one each had a batch of two in hand, and two drawn ahead. On a busy machine the two others
    # may each give them out again, of which one is dropped.
    assert len({trial.user_attrs["index"] for trial in retried}) == 8


def test_the_server_restarts_and_no_trial_is_lost(postgres, tmp_path):
    storage = postgres.new_database("restarted")
    study = opened(storage)
    deal(study, plan(trials=TRIALS), Board())
    workers = [child(storage, name, 0.2) for name in "ab"]
    for each in workers:
        until(each, "scoring")
    postgres.restart()
    said = [each.communicate(timeout=90)[0] for each in workers]
    assert all(text.splitlines()[-1].startswith("whole ") for text in said)
    assert_whole(study, TRIALS)


def test_one_worker_alone_finds_warm_starts_first_and_tells_whole_blocks(storage):
    events = []
    study = opened(storage)
    assert worker(study, events=events, trials=7, batch=3, warm_starts=SPACE.warm_starts()).work()
    assert_whole(study, 7)
    assert [each.parameters for each in finished_trials(study)][: len(SPACE.warm_starts())] == SPACE.warm_starts()
    kinds = [(type(event), event.trial) for event in events if isinstance(event, TrialStarted | TrialScored)]
    assert kinds == [(kind, number) for number in range(1, 8) for kind in (TrialStarted, TrialScored)]
    assert [event.completed for event in events if isinstance(event, Progress)] == [3, 6, 7]


def test_it_searches(tmp_path):
    study = opened(str(tmp_path / "study.sqlite3"))
    worker(study, trials=60).work()
    rates = [each.scores.rate + each.scores.kl for each in finished_trials(study)]
    assert sum(rates[-15:]) / 15 < 0.9 * sum(rates[:6]) / 6  # the first six are chance


def silence(study, trial):
    """What the heartbeats of a dead worker come to, without waiting for it: its trial failed, and given out again."""
    study.tell(trial.number, state=TrialState.FAIL)
    study._storage.get_heartbeat_stale_trial_callback()(study, study.get_trials()[trial.number])


def crashes(study):
    """Each place where a worker can die, and leave the study so."""
    taken = study.ask()
    yield taken  # taken, and not one heartbeat recorded
    failed = study.ask()
    study._storage.record_heartbeat(failed._trial_id)
    SPACE.suggest(failed)
    failed.set_user_attr("drawn", f"dead {failed.number}")
    study.tell(failed, state=TrialState.FAIL)
    yield failed  # failed for its silence, and its retry not enqueued


@pytest.mark.parametrize("dealt", [6, 4])
def test_what_a_crash_leaves_between_two_calls_is_set_right(storage, dealt):
    study = opened(storage)
    deal(study, plan(trials=6), Board(), dealt)  # fewer: the dealer died too
    left = list(crashes(study))
    assert worker(study, dealer=False, trials=6, batch=2).work()
    assert_whole(study, 6)
    parameters = {each.index: each.parameters for each in finished_trials(study)}
    assert parameters[left[1].user_attrs["index"]] == left[1].params  # drawn before: the same again


def test_what_was_dealt_twice_is_scored_once(storage):
    study, seen = opened(storage), []
    for _ in range(2):
        deal(study, plan(trials=5), Board())

    def counted(edits, rows, known):
        seen.extend(edits)
        return bowl(edits, rows)

    assert worker(study, counted, dealer=False, trials=5, batch=3).work()
    assert_whole(study, 5)
    assert len(seen) == 5


def test_a_trial_that_silences_every_worker_is_given_up_and_said(storage):
    study, events = opened(storage), []
    deal(study, plan(trials=2), Board())
    for _ in range(RETRIES + 1):
        silenced = study.ask()
        while silenced.user_attrs["index"] != 0:
            study.tell(silenced, state=TrialState.FAIL)
            silenced = study.ask()
        silence(study, silenced)
    assert worker(study, trials=2, events=events).work()
    assert [each.index for each in finished_trials(study)] == [1]
    assert any("Trial 1 was given up: 4 workers" in event.text for event in events if isinstance(event, Notice))


def test_a_failure_with_its_reason_is_a_result(storage):
    study, events = opened(storage), []

    def broken(edits, rows, known):
        return ["its routing health is 0.1"] * len(edits)

    assert worker(study, broken, trials=2, events=events).work()
    assert [event.trial for event in events if isinstance(event, TrialFailed)] == [1, 2]
    assert worker(study, trials=2).work() and finished_trials(study) == []


def test_a_heartbeat_keeps_a_slow_trial(storage):
    study = opened(storage)

    def slow(edits, rows, known):
        time.sleep((shared.LOOK + 4) * BEAT)  # longer than the grace period
        fail_silent(open_study(storage, "s", FINGERPRINT, heartbeat=BEAT))
        return bowl(edits, rows)

    assert worker(study, slow, trials=1).work()
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE]


def test_a_request_to_stop_ends_after_the_batch(storage):
    stop = Stop()

    def asked(edits, rows, known):
        stop.requested = True
        return bowl(edits, rows)

    study = opened(storage)
    assert not worker(study, asked, trials=6, batch=2, stop=stop).work()
    assert len(finished_trials(study)) == 2
    assert not look(study, 6).running


def test_the_next_batch_is_drawn_while_one_is_scored_and_given_back_at_a_stop(storage):
    study, stop, ahead = opened(storage), Stop(), []
    other = open_study(storage, "s", FINGERPRINT, heartbeat=BEAT)

    def scoring(edits, rows, known):
        until = time.monotonic() + 30
        while len(other.get_trials(states=(TrialState.RUNNING,))) < 4 or len(look(other, 6).workers) < 1:
            assert time.monotonic() < until
        stop.requested = True
        ahead.extend(each for each in other.get_trials(states=(TrialState.RUNNING,)) if each.user_attrs["index"] > 1)
        return bowl(edits, rows)

    assert not worker(study, scoring, trials=6, batch=2, stop=stop).work()
    board = look(study, 6)
    assert (board.decided, set(board.running), board.lost) == ({0, 1}, set(), {})
    assert sorted(board.waiting)[:2] == [2, 3] == [each.user_attrs["index"] for each in ahead]
    assert worker(study, trials=6, batch=2).work()
    assert_whole(study, 6)
    # Drawn once: what was given back came again as it was.
    again = {each.index: each.parameters for each in finished_trials(study)}
    assert all(again[each.user_attrs["index"]] == each.params for each in ahead if "drawn" in each.user_attrs)


def test_a_trial_lost_while_it_is_drawn_is_not_kept_alive(storage):
    study = opened(storage)
    deal(study, plan(trials=2), Board())

    class Cut(Space):
        def suggest(self, trial):
            super().suggest(trial)
            raise optuna.exceptions.StorageInternalError("the connection was lost")

    cut = worker(study, dealer=False, trials=2)
    cut.space = Cut(SPACE.layers, SPACE.components)
    with Heartbeats(study._storage, BEAT) as beats:
        with pytest.raises(optuna.exceptions.StorageInternalError):
            cut._ask(beats)
        assert beats._trials == set()


def test_near_the_end_nothing_is_drawn_that_others_could_score(storage):
    study, in_hand = opened(storage), []
    other = open_study(storage, "s", FINGERPRINT, heartbeat=BEAT)
    deal(study, plan(trials=4), Board())
    elsewhere = worker(other, name="other", dealer=False, trials=4, batch=2)

    def scoring(edits, rows, known):
        board = look(other, 4)
        in_hand.append({name: sum(drawn_by(each) == name for trials in board.running.values() for each in trials)
                        for name in board.workers})  # fmt: skip
        return bowl(edits, rows)

    with Heartbeats(other._storage, BEAT) as beats:
        others = elsewhere._draw(look(other, 4), beats)
        assert len(others) == 2
        worker_here = worker(study, scoring, dealer=False, trials=4, batch=2, name="here")
        with ThreadPoolExecutor(1) as thread:
            ahead, decided = worker_here._score(worker_here._draw(look(study, 4), beats), [], beats, thread)
    assert ahead == [] and len(decided) == 2
    assert in_hand == [{"other": 2, "here": 2}]


def test_a_study_of_workers_goes_on_in_one_process_and_back(tmp_path):
    storage = str(tmp_path / "study.sqlite3")
    study = opened(storage)
    deal(study, plan(trials=9), Board())
    study.ask()
    alone = open_study(storage, "s", FINGERPRINT)
    assert search(alone, SPACE, bowl, plan(trials=6), [].append, Stop())
    assert_whole(alone, 6)
    assert worker(opened(storage), trials=9).work()
    assert_whole(study, 9)


def test_joining_names_what_differs_and_what_is_missing(storage):
    with pytest.raises(InputError, match="holds no study s that a run has opened to workers"):
        join_study(storage, "s", heartbeat=BEAT)
    open_study(storage, "s", FINGERPRINT)
    with pytest.raises(InputError, match="has opened to workers"):
        join_study(storage, "s", heartbeat=BEAT)
    opened(storage)
    study = join_study(storage, "s", heartbeat=BEAT)
    with pytest.raises(StudyMismatch, match="search prompts: p then, q now"):
        check_fingerprint(study, {**FINGERPRINT, "search prompts": "q"})


def test_a_worker_frozen_in_a_transaction_does_not_keep_its_locks(postgres):
    study = opened(postgres.new_database("idling"))
    with study._storage._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1min"


@pytest.mark.parametrize("change", ["bruno:wrong-password@", "bruno:***@", "nobody:wrong-password@"])
def test_a_refused_password_is_one_line_without_it(postgres, change, monkeypatch):
    monkeypatch.delenv("PGPASSWORD", raising=False)
    url = "postgresql+psycopg://" + change + postgres.url.rpartition("@")[2]
    with pytest.raises(BrunoError, match="cannot be opened") as refusal:
        open_study(url, "s", FINGERPRINT)
    text = str(refusal.value)
    assert "wrong-password" not in text and len(text.splitlines()) == 1


def test_a_password_may_stay_with_libpq(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    url = postgres.new_database("libpq")
    for spelled in ("postgresql://bruno@", "postgres://bruno:***@"):
        assert open_study(spelled + url.rpartition("@")[2], "s", FINGERPRINT).study_name == "s"
    assert optuna.get_all_study_names(url) == ["s"]
