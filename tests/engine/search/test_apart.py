"""A worker of two processes on real storages: whichever of them dies, freezes or fails, nothing is lost or counted twice,
and the model is asked for one thing at a time."""

import os
import signal
import sqlite3
import threading
import time
from dataclasses import replace

import optuna
import pytest

from bruno.engine.events import OutOfMemory, TrialScored, TrialStarted
from bruno.engine.search.apart import work_apart
from bruno.engine.search.board import Board, deal, look
from bruno.engine.search.bookkeeper import Elsewhere, Seat, portable
from bruno.engine.search.heartbeats import Heartbeats
from bruno.engine.search.screening import Screening
from bruno.engine.search.space import Space
from bruno.engine.search.storage import NoStudy, StudyMismatch, open_study
from bruno.engine.search.study import Plan, Stop, finished_trials, search
from bruno.errors import BrunoError
from tests.engine.postgres import PASSWORD
from tests.engine.search.one_worker import BEAT, SPACE, TRIALS, bowl
from tests.engine.search.test_screening import look as glances
from tests.engine.search.test_shared import assert_whole, child, opened, plan, postgres, storage, until  # noqa: F401

REFUSED = "was given to another worker while this one was silent"


def beside(storage, name, what="nothing"):  # noqa: F811
    return child(storage, name, what, module="one_model")


def seat(storage, **more):  # noqa: F811
    return Seat(
        storage, "s", SPACE, Plan(**{"trials": 6, "batch": 2, "startup": 6, "seed": 3, **more}), "w", BEAT, True
    )


def work(place, evaluate=bowl, events=None, stop=None):
    return work_apart(place, evaluate, (events if events is not None else []).append, stop or Stop())


def test_the_models_process_killed_and_another_frozen_lose_and_double_nothing(storage):  # noqa: F811
    study = opened(storage)
    deal(study, plan(trials=TRIALS), Board())
    killed, frozen = beside(storage, "killed", "hold"), beside(storage, "frozen", "freeze")
    for process in (killed, frozen):
        until(process, "scoring")
        until(process, "scoring")
    until(killed, "Elapsed time")  # its first batch is stored
    killed.kill()
    killed.communicate(timeout=60)  # both of its processes have closed their output
    others = [beside(storage, "a"), child(storage, "b")]
    said = {process: process.communicate(timeout=90)[0] for process in others}
    assert_whole(study, TRIALS)
    before = finished_trials(study)
    frozen.send_signal(signal.SIGCONT)
    said[frozen] = frozen.communicate(timeout=60)[0]
    # What it scored is refused, and what its other process had drawn meanwhile is not scored at all.
    assert said[frozen].count(REFUSED) == 2 and "scoring" not in said[frozen]
    assert finished_trials(study) == before
    scored = [int(text.splitlines()[-1].removeprefix("whole ")) for text in said.values()]
    assert sum(scored) == TRIALS - 2  # the killed one had one batch stored


def test_the_studys_process_killed_ends_its_worker_and_loses_nothing(storage):  # noqa: F811
    study = opened(storage)
    deal(study, plan(trials=TRIALS), Board())
    worker = beside(storage, "w", "hold")
    until(worker, "scoring")
    os.kill(int(until(worker, "scoring").split()[-1]), signal.SIGKILL)
    worker.send_signal(signal.SIGTERM)  # lets the batch end
    said = worker.communicate(timeout=60)[0]
    assert worker.returncode == 1
    assert "Error: The process that keeps this worker's study has ended (signal 9)" in said
    assert beside(storage, "next").communicate(timeout=90)[0].splitlines()[-1].startswith("whole ")
    assert_whole(study, TRIALS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_heard_by_the_models_process_and_gives_back_what_was_drawn(storage, number):  # noqa: F811
    study = opened(storage)
    deal(study, plan(trials=TRIALS), Board())
    worker = beside(storage, "w", "hold")
    until(worker, "scoring")
    until(worker, "scoring")
    os.killpg(worker.pid, number)  # as a terminal does: to both
    said = worker.communicate(timeout=60)[0]
    assert (worker.returncode, said.splitlines()[-1]) == (0, "stopped 4")
    board = look(study, TRIALS)
    assert (len(board.decided), board.running, board.lost) == (4, {}, {})
    assert len(board.waiting) == TRIALS - 4


def test_the_model_does_one_thing_at_a_time_and_here(storage):  # noqa: F811
    opened(storage)
    calls, busy = [], threading.Lock()

    def alone(kind, answer):
        def called(*given):
            assert threading.current_thread() is threading.main_thread()
            assert busy.acquire(blocking=False)
            calls.append(kind)
            time.sleep(0)
            busy.release()
            return answer(*given)

        return called

    place = seat(storage)
    place = replace(place, plan=replace(place.plan, screening=Screening(alone("look", glances), SPACE, 3, 60)))
    share = work(place, alone("score", bowl))
    assert (share.whole, share.scored) == (True, 6)
    assert calls == ["look", "look", "score"] * 3
    assert_whole(opened(storage), 6)


def test_events_of_both_are_whole_blocks_and_known_trials_are_told(storage):  # noqa: F811
    opened(storage)
    events, told = [], []

    def evaluate(edits, rows, known):
        told.append(known)
        return bowl(edits)

    assert work(seat(storage, trials=8), evaluate, events).whole
    blocks = [(type(each), each.trial) for each in events if isinstance(each, TrialStarted | TrialScored)]
    assert blocks == [(kind, number) for number in range(1, 9) for kind in (TrialStarted, TrialScored)]
    # Each batch knows what nothing beats of all before it, those included that are being stored meanwhile.
    scores = {each.trial: each for each in events if isinstance(each, TrialScored)}
    for batch, known in enumerate(told):
        before = [scores[number] for number in range(1, 2 * batch + 1)]
        best = min(((each.refusals, each.kl) for each in before), default=None)
        assert [(each.refusals, each.kl) for _, each in known[:1]] == [best] * bool(best)


def test_memory_that_runs_out_is_heard_where_the_model_is(storage):  # noqa: F811
    opened(storage)
    events, asked = [], []

    def evaluate(edits, rows, known):
        asked.append(rows)
        if rows != 30:
            raise MemoryError
        return bowl(edits)

    assert work(seat(storage, trials=4, rows=120), evaluate, events).scored == 4
    assert asked == [0, 60, 30, 30]
    assert sum(isinstance(each, OutOfMemory) for each in events) == 2


@pytest.mark.parametrize("error", [BrunoError("the model is broken", fix="Mend it"), ValueError("a defect")])
def test_an_error_of_the_model_is_raised_as_it_is_after_what_came_before_was_stored(storage, error):  # noqa: F811
    study = opened(storage)
    batches = []

    def evaluate(edits, rows, known):
        batches.append(edits)
        if len(batches) == 2:
            raise error
        return bowl(edits)

    with pytest.raises(type(error)) as raised:
        work(seat(storage), evaluate)
    assert raised.value is error
    assert [each.index for each in finished_trials(study)] == [0, 1]


class Broken(Space):
    def suggest(self, trial):
        raise KeyError("nothing of the kind")


def test_errors_of_the_studys_process_are_raised_here(tmp_path):
    path = str(tmp_path / "study.sqlite3")
    with pytest.raises(NoStudy, match="holds no study s") as missing:
        work(seat(path))
    assert missing.value.exit_code == 2 and "--wait" in missing.value.fix
    opened(path)
    with pytest.raises(Elsewhere, match=r"^KeyError: 'nothing of the kind'") as defect:
        work(replace(seat(path), space=Broken(SPACE.layers, SPACE.components)))
    assert "in suggest" in defect.value.__notes__[0]

    def evaluate(edits, rows, known):
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE trial_user_attributes")
        return bowl(edits)

    with pytest.raises(optuna.exceptions.StorageInternalError, match="no such table"):
        work(replace(seat(path), patience=0), evaluate)


def test_no_password_comes_over_the_pipe(postgres):  # noqa: F811
    url = postgres.url.replace("bruno:", "nobody:")
    with pytest.raises(BrunoError, match="cannot be opened") as refused:
        work(seat(url))
    assert PASSWORD not in str(refused.value) and "nobody:%" not in str(refused.value)


def test_a_log_that_cannot_be_written_ends_the_worker(tmp_path):
    path = str(tmp_path / "study.sqlite3")
    opened(path)

    def full(event):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        work_apart(seat(path), bowl, full, Stop())


def test_what_cannot_travel_still_says_what_it_was():
    class Local(BrunoError):
        pass

    assert str(portable(Local("here", fix="there"))) == "here. there"
    assert isinstance(portable(StudyMismatch("two")), StudyMismatch)


def test_no_heartbeat_is_recorded_while_there_is_no_sign_of_life():
    beats, answers = [], iter([False, True, False])
    over = threading.Event()

    class Storage:
        def record_heartbeat(self, trial):
            beats.append(trial)

    def alive():
        answer = next(answers, None)
        if answer is None:
            over.set()
        return bool(answer)

    with Heartbeats(Storage(), 0.01, alive) as heart:
        heart.begin(7)  # the first one is of the draw itself
        assert over.wait(10)
    assert beats == [7, 7]


def alone(path, **more):
    """The place of a run that works on its study by itself."""
    wanted = Plan(**{"trials": 16, "batch": 4, "startup": 6, "seed": 3, "ahead": True, **more})
    return Seat(str(path / "study.sqlite3"), "s", SPACE, wanted, "", BEAT)


def test_a_run_by_itself_has_the_trials_that_it_would_have_in_one_process(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    events, place = [], alone(tmp_path / "two")
    in_one = open_study(str(tmp_path / "one" / "study.sqlite3"), "s", {})
    assert search(in_one, SPACE, bowl, place.plan, lambda _: None, Stop())
    open_study(place.storage, "s", {})
    share = work(place, events=events)
    assert (share.whole, share.scored) == (True, 16)
    in_two = open_study(place.storage, "s", {})
    assert [(t.parameters, t.scores) for t in finished_trials(in_two)] == [
        (t.parameters, t.scores) for t in finished_trials(in_one)
    ]
    assert [event.completed for event in events if event.kind == "progress"] == [4, 8, 12, 16]


def test_a_run_by_itself_that_was_stopped_goes_on_where_it_was(tmp_path):
    stop, place = Stop(), alone(tmp_path)

    def evaluate(edits, rows, known):
        stop.requested = len(known) >= 4
        return bowl(edits)

    open_study(place.storage, "s", {})
    first = work(place, evaluate, stop=stop)
    assert (first.whole, first.scored) == (False, 8)
    second = work(place)
    assert (second.whole, second.scored) == (True, 8)
    (tmp_path / "whole").mkdir()
    uncut = alone(tmp_path / "whole")
    open_study(uncut.storage, "s", {})
    work(uncut)
    studies = [open_study(each.storage, "s", {}) for each in (place, uncut)]
    assert len({str([(t.parameters, t.scores) for t in finished_trials(each)]) for each in studies}) == 1
