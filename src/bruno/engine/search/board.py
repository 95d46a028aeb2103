"""What became of every trial of a shared study, and dealing out those that nobody has.

Touches the study's storage and nothing else. `Worker` (`shared.py`) says in which order these are called.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from bruno.engine.search.storage import RETRIES
from bruno.engine.search.study import Plan


@dataclass
class Board:
    """What became of every index below the plan's number of trials."""

    decided: set[int] = field(default_factory=set)
    waiting: dict[int, list[FrozenTrial]] = field(default_factory=dict)
    running: dict[int, list[FrozenTrial]] = field(default_factory=dict)
    lost: dict[int, FrozenTrial] = field(default_factory=dict)
    """Failed without a reason, and not given out again; the furthest of an index's attempts."""
    given_up: set[int] = field(default_factory=set)
    """Decided by having silenced `RETRIES` + 1 workers."""

    @property
    def workers(self) -> set[str]:
        """Those that have trials in hand, by name."""
        names = {drawn_by(trial) for trials in self.running.values() for trial in trials}
        return {name for name in names if name is not None}


def mark(worker: str, number: int) -> str:
    """What a trial says once it is drawn: a retry, which inherits the words, has another number."""
    return f"{worker} {number}"


def drawn_by(trial: FrozenTrial) -> str | None:
    """The worker that drew a trial; None while nobody has."""
    name, _, number = str(trial.user_attrs.get("drawn", "")).rpartition(" ")
    return name if number == str(trial.number) else None


def look(study: optuna.Study, trials: int) -> Board:
    """The study as it is now."""
    board, failed = Board(), dict[int, FrozenTrial]()
    for trial in study.get_trials(deepcopy=False):
        index = trial.user_attrs.get("index", trials)
        if index >= trials:
            continue
        if trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs):
            board.decided.add(index)
        elif trial.state == TrialState.WAITING:
            board.waiting.setdefault(index, []).append(trial)
        elif trial.state == TrialState.RUNNING:
            board.running.setdefault(index, []).append(trial)
        elif index not in failed or attempts(trial) >= attempts(failed[index]):
            failed[index] = trial
    for index, trial in failed.items():
        if index in board.decided or index in board.waiting or index in board.running:
            continue
        if attempts(trial) >= RETRIES:
            board.decided.add(index)
            board.given_up.add(index)
        else:
            board.lost[index] = trial
    return board


def attempts(trial: FrozenTrial) -> int:
    """How many workers fell silent with this trial before."""
    with quietly():
        return len(RetryHeartbeatStaleTrialCallback.retry_history(trial))


def deal(study: optuna.Study, plan: Plan, board: Board, most: int | None = None) -> int:
    """Have every index (at most so many) waiting that is neither decided nor in someone's hands; how many there were.

    Called by several at once it deals some twice, of which `Worker` takes the first and drops the others.
    """
    dealt = 0
    with quietly():
        again = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        for index in range(plan.trials):
            if index in board.decided or index in board.waiting or index in board.running:
                continue
            if most is not None and dealt >= most:
                break
            if index in board.lost:
                again(study, board.lost[index])
            else:
                fixed = plan.warm_starts[index] if index < len(plan.warm_starts) else {}
                study.enqueue_trial(dict(fixed), user_attrs={"index": index})
            dealt += 1
    return dealt


def give_back(study: optuna.Study, trial: optuna.Trial) -> None:
    """Have a trial that was drawn and not scored wait again, with its index, parameters and history.

    Killed between the two calls it is there twice, of which one is dropped by whoever takes it.
    """
    drawn = study._storage.get_trial(trial._trial_id)
    attributes = {**drawn.system_attrs, "fixed_params": drawn.params}
    index = {"index": drawn.user_attrs["index"]}
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=attributes, user_attrs=index))
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def fail_silent(study: optuna.Study) -> None:
    """Fail the trials of workers without a sign of life for the grace period, and give them out again."""
    with quietly():
        optuna.storages.fail_stale_trials(study)


@contextmanager
def quietly():
    """Optuna calls heartbeats experimental, and warns that `ask` needs them recorded, which `Heartbeats` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield
