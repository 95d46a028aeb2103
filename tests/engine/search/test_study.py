"""The study on functions whose optimum is known: found, repeatable, the same after a kill -9, refused when it is another."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bruno.engine.events import OutOfMemory, Progress, Resumed, TrialFailed, TrialScored, TrialStarted
from bruno.engine.scoring.result import Scores
from bruno.engine.search.sampler import FEW, JointSampler
from bruno.engine.search.space import Space
from bruno.engine.search.storage import StudyMismatch, open_study
from bruno.engine.search.study import Plan, Stop, finished_trials, search, stop_on_signals
from bruno.errors import BrunoError

SPACE = Space(30, ("attn.o_proj", "mlp.down_proj"))
FINGERPRINT = {"model": "m", "search prompts": "p"}


def bowl(edits, rows, known=()):
    """Refusals fall with attention strength near its best place, KL rises with strength and reach."""
    results = []
    for edit in edits:
        attention, mlp = edit.kernels["attn.o_proj"], edit.kernels["mlp.down_proj"]
        miss = abs(attention.position - 22) / 10 + abs(attention.max_weight - 1.1)
        kl = 0.02 * attention.reach + 0.3 * max(0.0, mlp.max_weight) + 0.01
        results.append(Scores(refusals=min(60, int(60 * miss)), prompts=60, kl=kl))
    return results


def study_of(path, fingerprint=FINGERPRINT):
    return open_study(str(path / "study.sqlite3"), "s", fingerprint)


def plan(trials=20, batch=1, seed=3, **more):
    return Plan(trials=trials, batch=batch, startup=6, seed=seed, **more)


def run(path, evaluate=bowl, stop=None, **settings):
    study, events = study_of(path), []
    whole = search(study, SPACE, evaluate, plan(**settings), events.append, stop or Stop())
    return study, events, whole


def facts(study):
    return [(trial.index, trial.parameters, trial.scores) for trial in finished_trials(study)]


@pytest.mark.parametrize("batch", [1, 4])
def test_same_seed_same_study(tmp_path, batch):
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (facts(run(tmp_path / name, batch=batch)[0]) for name in "ab")
    assert first == second
    assert len(first) == 20


def test_another_seed_is_another_study(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert facts(run(tmp_path / "a", seed=1)[0]) != facts(run(tmp_path / "b", seed=2)[0])


def test_it_searches(tmp_path):
    study, _, _ = run(tmp_path, trials=60)
    scored = facts(study)
    rates = [scores.rate + scores.kl for _, _, scores in scored]
    assert sum(rates[-15:]) / 15 < 0.85 * sum(rates[:6]) / 6  # below what chance draws
    few = [scores.rate <= FEW for _, _, scores in scored]
    assert sum(few[-30:]) > 2 * sum(few[:30])  # what it is after: few refusals, at whatever KL that takes
    assert len({scores for _, _, scores in scored}) > 30


def test_the_sampler_draws_what_optunas_own_does(tmp_path, monkeypatch):
    """It only spares Optuna looking through all trials for what the space is."""
    for name in ("ours", "optunas"):
        (tmp_path / name).mkdir()
    ours = facts(run(tmp_path / "ours", batch=4)[0])
    monkeypatch.delattr(JointSampler, "infer_relative_search_space")
    assert facts(run(tmp_path / "optunas", batch=4)[0]) == ours


def test_warm_starts_come_first(tmp_path):
    study, _, _ = run(tmp_path, trials=len(SPACE.warm_starts()), warm_starts=SPACE.warm_starts())
    assert [parameters for _, parameters, _ in facts(study)] == SPACE.warm_starts()


def test_the_log_of_a_batch_is_one_block_a_trial(tmp_path):
    _, events, whole = run(tmp_path, trials=6, batch=4)
    assert whole
    kinds = [(type(event), event.trial) for event in events if isinstance(event, (TrialStarted, TrialScored))]
    assert kinds == [(kind, number) for number in range(1, 7) for kind in (TrialStarted, TrialScored)]
    assert [event.completed for event in events if isinstance(event, Progress)] == [4, 6]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("batch", "scored_before"), [(1, 7), (4, 4), (4, 6), (4, 7)])
def test_a_study_cut_at_any_place_goes_on_as_if_it_were_not(tmp_path, batch, scored_before, ahead, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, _, _ = run(tmp_path / "whole", batch=batch, ahead=ahead)
    import optuna

    told, real = [], optuna.Study.tell

    def tell(self, *args, **kwargs):
        if len(told) == scored_before:
            raise KeyboardInterrupt  # between two trials of a batch, as a kill would
        told.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "tell", tell)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batch=batch, ahead=ahead)
    monkeypatch.setattr(optuna.Study, "tell", real)
    study, events, _ = run(tmp_path / "cut", batch=batch, ahead=ahead)
    assert facts(study) == facts(whole)
    assert events[0] == Resumed(next_trial=scored_before + 1, completed=scored_before, time=events[0].time)


@pytest.mark.parametrize("drawn_before", [9, 13, 14])
def test_cut_while_it_draws_ahead_it_goes_on_as_if_it_were_not(tmp_path, drawn_before, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, _, _ = run(tmp_path / "whole", batch=4, ahead=True)
    drawn, real = [], Space.suggest

    def suggest(self, trial):
        if len(drawn) == drawn_before:
            raise KeyboardInterrupt
        drawn.append(1)
        return real(self, trial)

    monkeypatch.setattr(Space, "suggest", suggest)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", batch=4, ahead=True)
    monkeypatch.setattr(Space, "suggest", real)
    assert facts(run(tmp_path / "cut", batch=4, ahead=True)[0]) == facts(whole)


def test_a_batch_is_drawn_while_the_one_before_is_scored_and_knows_nothing_of_it(tmp_path, monkeypatch):
    """The scorer answers only once the next batch is there; one that was not drawn ahead would wait for ever."""
    drawn, real = threading.Semaphore(0), Space.suggest

    def suggest(self, trial):
        parameters = real(self, trial)
        drawn.release()
        return parameters

    def evaluate(edits, rows, known):
        told.append(len(known))
        batches = 2 if len(told) == 1 else 0 if len(told) == 5 else 1  # the first is drawn before any is scored
        for _ in range(4 * batches):
            assert drawn.acquire(timeout=60)
        return bowl(edits, rows)

    told = []
    monkeypatch.setattr(Space, "suggest", suggest)
    _, _, whole = run(tmp_path, evaluate, batch=4, ahead=True)
    assert whole
    assert told == [0, 4, 8, 12, 16]


CHILD = """
import sys
from pathlib import Path
from tests.engine.search.test_study import SPACE, Stop, bowl, plan, search, stop_on_signals, study_of

folder, batch, pause_at = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def emit(event):
    for line in event.lines():
        print(line, flush=True)
        if line == pause_at:
            sys.stdin.readline()

with stop_on_signals() as stop:
    whole = search(study_of(folder), SPACE, bowl, plan(trials=16, batch=batch), emit, stop)
print("whole" if whole else "stopped", flush=True)
"""


def child(folder, batch, pause_at=""):
    """A real process that runs the study; after printing the line `pause_at` it waits for a line on its input."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(batch), pause_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def lines_until(process, last):
    seen = []
    for line in process.stdout:
        seen.append(line.rstrip("\n"))
        if seen[-1] == last:
            break
    return seen


@pytest.mark.parametrize(("batch", "kill_at"), [(1, [9]), (4, [14])])
def test_killed_with_9_and_resumed_is_the_uninterrupted_study(tmp_path, batch, kill_at):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    for trial in kill_at:
        process = child(tmp_path / "killed", batch, f"Running trial {trial} of 16...")
        lines_until(process, f"Running trial {trial} of 16...")
        process.kill()
        assert process.wait() == -signal.SIGKILL
    output, _ = child(tmp_path / "killed", batch).communicate()
    # With batches the lines of trial 14 are printed when trial 13 of its batch is stored.
    assert output.startswith(f"Resuming from trial {kill_at[-1]} ({kill_at[-1] - 1} completed trials found)\n")
    assert output.endswith("whole\n")
    whole, _, _ = run(tmp_path / "whole", trials=16, batch=batch)
    assert facts(study_of(tmp_path / "killed")) == facts(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_batch_with_everything_saved(tmp_path, number):
    process = child(tmp_path, 4, "Running trial 5 of 16...")
    lines_until(process, "Running trial 5 of 16...")
    process.send_signal(number)
    output, _ = process.communicate("go on\n")
    assert process.returncode == 0 and output.endswith("stopped\n")
    assert output.count("Refusals:") == 4  # of the batch under way
    assert [index for index, _, _ in facts(study_of(tmp_path))] == list(range(8))


def test_the_second_signal_ends_at_once():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_more_trials_go_on_from_the_end(tmp_path):
    run(tmp_path, trials=8)
    study, events, _ = run(tmp_path, trials=10)
    assert [event.trial for event in events if isinstance(event, TrialStarted)] == [9, 10]
    assert len(facts(study)) == 10


def test_a_whole_study_runs_nothing(tmp_path):
    run(tmp_path, trials=8)
    _, events, whole = run(tmp_path, trials=8)
    assert whole and [type(event) for event in events] == [Resumed]


def test_another_fingerprint_is_refused_by_name(tmp_path):
    study_of(tmp_path)
    with pytest.raises(StudyMismatch, match="search prompts: p then, q now") as refusal:
        study_of(tmp_path, {"model": "m", "search prompts": "q"})
    assert "model" not in refusal.value.message
    study_of(tmp_path)


@pytest.mark.parametrize("storage", ["/nowhere/at/all/study.sqlite3", "nothing://here"])
def test_a_storage_that_cannot_be_opened_is_one_line(storage):
    with pytest.raises(BrunoError, match="cannot be opened") as refusal:
        open_study(storage, "s", FINGERPRINT)
    assert len(str(refusal.value).splitlines()) == 1


def test_out_of_memory_halves_the_rows_and_goes_on(tmp_path):
    import torch  # here, so that the child processes above start without it

    asked = []

    def hungry(edits, rows, known):
        asked.append(rows)
        if rows == 0 or rows > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bowl(edits, rows)

    study, events, whole = run(tmp_path, evaluate=hungry, trials=8, batch=4, rows=240)
    assert whole and len(facts(study)) == 8
    assert asked == [0, 120, 60, 60]
    assert [event.attempt for event in events if isinstance(event, OutOfMemory)] == [1, 2]


def test_a_trial_that_never_fits_is_failed_and_the_study_goes_on(tmp_path):
    calls = []

    def sometimes(edits, rows, known):
        calls.append(rows)
        if len(calls) <= 3:
            raise MemoryError
        return bowl(edits, rows)

    study, events, whole = run(tmp_path, evaluate=sometimes, trials=5, rows=64)
    assert whole and [index for index, _, _ in facts(study)] == [1, 2, 3, 4]
    assert [event.trial for event in events if isinstance(event, TrialFailed)] == [1]
    _, events, _ = run(tmp_path, trials=5)
    assert [type(event) for event in events] == [Resumed]  # failed is decided: not tried for ever


def test_a_kl_that_is_no_number_fails_its_trial(tmp_path):
    def broken(edits, rows, known):
        return [Scores(refusals=0, prompts=60, kl=float("nan"))]

    _, events, whole = run(tmp_path, evaluate=broken, trials=2)
    assert whole
    assert [event.reason for event in events if isinstance(event, TrialFailed)] == ["its KL divergence is nan"] * 2


def test_other_errors_are_not_swallowed(tmp_path):
    def wrong(edits, rows, known):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path, evaluate=wrong)
