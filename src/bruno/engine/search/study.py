"""Ask Optuna for trials, score them in batches, tell it the result; resume where a killed process left off.

Touches the study's storage and nothing else. The model is behind a function (`evaluate`), so the whole of this is
tested on functions whose optimum is known.

**A resumed study is the same study.** Optuna numbers its trials as it creates them, and a kill leaves numbers that
never got a score. So every trial carries an `index` of its own (0, 1, 2 ...), the sampler is seeded from the run's seed
and that index, batches always begin at the same indices, and a trial that was drawn but not scored is drawn again with
the same parameters. Killed or not, index i has the same parameters and the same score.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TypeGuard

import optuna
from optuna.trial import TrialState

from bruno.engine.events import (
    Emit,
    Progress,
    Resumed,
    TrialFailed,
    TrialScored,
    TrialStarted,
    TrialStopped,
)
from bruno.engine.scoring.result import Scores, Stopped
from bruno.engine.search.evaluation import Evaluate, evaluate_batch
from bruno.engine.search.rdb import together
from bruno.engine.search.sampler import FEW, sampler_for
from bruno.engine.search.screening import Screening
from bruno.engine.search.space import Parameters, Space

Drawn = tuple[int, optuna.Trial]
"""An index, and the trial that is to decide it."""


@dataclass(frozen=True)
class FinishedTrial:
    """A scored trial. `index` counts from 0; the log and people count from 1 (`number`)."""

    index: int
    parameters: Parameters
    scores: Scores

    @property
    def number(self) -> int:
        return self.index + 1


@dataclass(frozen=True)
class Plan:
    """What a search is to do.

    Args:
        trials: how many the study holds in all when it is done.
        batch: trials evaluated together.
        startup: trials drawn at random before the sampler learns.
        seed: of the sampler.
        warm_starts: parameters of the first trials.
        rows: how many rows one batch needs at most (trials x prompts): where halving starts when memory runs out.
        screening: chooses each trial that is no warm start among several candidates; None takes the first.
        ahead: draw each batch while the one before is scored; not with screening, which scores candidates.
    """

    trials: int
    batch: int
    startup: int
    seed: int
    warm_starts: Sequence[Parameters] = ()
    rows: int = 0
    screening: Screening | None = None
    ahead: bool = False


class Stop:
    """Set by the first Ctrl-C (SIGINT) or SIGTERM while a search runs; the second ends the process at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, _number: int, _frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request to end after the batch under way.

    Only the main thread can hear signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finished_trials(study: optuna.Study) -> list[FinishedTrial]:
    """The scored trials, by index. Those that stopped because another is better have no count and are not among them."""
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "scores" not in trial.user_attrs:
            continue
        scores = Scores(**trial.user_attrs["scores"])
        found.setdefault(
            trial.user_attrs["index"], FinishedTrial(trial.user_attrs["index"], dict(trial.params), scores)
        )
    return [found[index] for index in sorted(found)]


def stopped_trials(study: optuna.Study) -> dict[int, Stopped]:
    """The trials that stopped because another is better, by index."""
    return {
        trial.user_attrs["index"]: Stopped(**trial.user_attrs["stopped"])
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if "stopped" in trial.user_attrs
    }


def remaining(study: optuna.Study, trials: int) -> int:
    """How many of the first `trials` trials have no result yet."""
    return trials - len({index for index in _decided(study) if index < trials})


def search(study: optuna.Study, space: Space, evaluate: Evaluate, plan: Plan, emit: Emit, stop: Stop) -> bool:
    """Run the study up to `plan.trials` trials.

    Every trial is stored as it is scored. One that runs out of memory `ATTEMPTS` times, or whose KL is not a number, is
    stored as failed, and the study goes on. With `plan.ahead`, while a batch is scored the one before is stored and the next
    drawn, which knows nothing of the one under way: always, killed and resumed or not, so that the trials stay the same.

    Returns:
        True when the study is whole, False when `stop` was requested first.
    """
    taken, drawn = _decided(study), _abandoned(study)
    if taken:
        emit(Resumed(next_trial=_first_missing(taken) + 1, completed=len(taken)))
    known = [(each.number, each.scores) for each in finished_trials(study)]
    telling, rows = _Telling(study, space, plan, emit, set(taken)), 0
    with ThreadPoolExecutor(1, "scoring") as scoring:
        batch = _draw(study, space, plan, taken, drawn)
        while batch and not stop.requested:
            # Trials of the same batch are left out, whether or not a killed process has scored some: the batch is the same.
            before = [each for each in sorted(known) if each[0] <= batch[0][0] // plan.batch * plan.batch]
            edits = [space.edit(trial.params) for _, trial in batch]
            score = partial(evaluate_batch, evaluate, edits, before, plan.rows, rows, emit)
            under_way = scoring.submit(score) if plan.ahead else None
            telling.tell_all()
            telling.begin(batch)
            taken.update(index for index, _ in batch)
            ahead = _draw(study, space, plan, taken, drawn) if plan.ahead else []
            results, rows = under_way.result() if under_way is not None else score()
            known += [(i + 1, each) for (i, _), each in zip(batch, results, strict=True) if _counts(each)]
            telling.results = results
            if not plan.ahead:
                telling.tell_all()
            batch = ahead or ([] if stop.requested else _draw(study, space, plan, taken, drawn))
        telling.tell_all()
    return _first_missing(telling.decided) >= plan.trials


@dataclass
class _Telling:
    """Stores the results of a batch and says them, one block of the log for each trial."""

    study: optuna.Study
    space: Space
    plan: Plan
    emit: Emit
    decided: set[int]
    batch: Sequence[Drawn] = ()
    results: Sequence[Scores | Stopped | str] = ()
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def begin(self, batch: Sequence[Drawn]) -> None:
        """Say that a batch is being scored."""
        self.batch = batch
        self._say_started(*batch[0])

    def tell_all(self) -> None:
        """Store the results of the batch that was begun last, where they are there and not stored yet."""
        if not self.results:
            return
        for position, ((index, trial), result) in enumerate(zip(self.batch, self.results, strict=True)):
            if position:
                self._say_started(index, trial)
            tell(self.study, trial, index, result, self.emit)
            self.decided.add(index)
        self.results = ()
        self.done += len(self.batch)
        completed, elapsed = len(self.decided), time.monotonic() - self.started
        left = elapsed / self.done * (self.plan.trials - completed)
        self.emit(
            Progress(completed=completed, trials=self.plan.trials, elapsed_seconds=elapsed, remaining_seconds=left)
        )

    def _say_started(self, index: int, trial: optuna.Trial) -> None:
        shown = self.space.shown(trial.params)
        self.emit(TrialStarted(trial=index + 1, trials=self.plan.trials, parameters=shown))


def _counts(result: Scores | Stopped | str) -> TypeGuard[Scores]:
    """Whether a trial has a count that others can be compared with."""
    return isinstance(result, Scores) and math.isfinite(result.kl)


def _draw(
    study: optuna.Study, space: Space, plan: Plan, taken: Set[int], drawn: Mapping[int, Parameters]
) -> list[Drawn]:
    """The batch of the first index that is not taken; nothing where all are.

    Args:
        drawn: parameters of trials that a dead process drew.
    """
    first = _first_missing(taken)
    end = min(plan.trials, (first // plan.batch + 1) * plan.batch)
    indices = [index for index in range(first, end) if index not in taken]
    return [(index, _ask(study, space, plan, index, drawn.get(index))) for index in indices]


def _decided(study: optuna.Study) -> set[int]:
    """Indices that have their result: a score, or a failure with its reason."""
    return {
        trial.user_attrs["index"]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        if trial.state == TrialState.COMPLETE or "reason" in trial.user_attrs
    }


def _abandoned(study: optuna.Study) -> dict[int, Parameters]:
    """Parameters of trials that a process drew and did not live to score, by index.

    Its running trials are marked failed, so that the sampler no longer counts them as running.
    """
    drawn: dict[int, Parameters] = {}
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        # Dealt to workers that have gone: this process takes indices in their order, and asks for each itself.
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.user_attrs.get("drawn") and "reason" not in trial.user_attrs:
            drawn[trial.user_attrs["index"]] = dict(trial.params)
    return drawn


def _first_missing(decided: Set[int]) -> int:
    return next(index for index in range(len(decided) + 1) if index not in decided)


def _ask(study: optuna.Study, space: Space, plan: Plan, index: int, drawn: Parameters | None) -> optuna.Trial:
    """Draw trial `index`: as the dead process drew it, or as a warm start says, or by the sampler seeded for this
    index."""
    study.sampler = sampler_for(plan, index, space, drawn)
    trial = study.ask()
    trial.set_user_attr("index", index)
    with together(study):
        space.suggest(trial)
    trial.set_user_attr("drawn", True)
    return trial


def tell(study: optuna.Study, trial: optuna.Trial, index: int, result: Scores | Stopped | str, emit: Emit) -> None:
    """Store a result (a string is the reason of a failure), then say it: what the log shows is saved already.

    The sampler is told constraints with it (`sampler.py`): a trial that refuses more than `FEW` breaks one by the rest of
    its rate, a stopped one another by its KL above that of the better trial. So it learns where not to look.
    """
    if isinstance(result, (Scores, Stopped)) and not math.isfinite(result.kl):
        result = f"its KL divergence is {result.kl}"
    if isinstance(result, str):
        trial.set_user_attr("reason", result)
        study.tell(trial, state=TrialState.FAIL)
        emit(TrialFailed(trial=index + 1, reason=result))
        return
    if isinstance(result, Stopped):
        trial.set_user_attr("stopped", asdict(result))
        trial.set_constraint("excess_kl", result.excess)
        trial.set_constraint("refusal_rate", result.at_least / result.prompts - FEW)
        study.tell(trial, [result.at_least / result.prompts, result.kl])
        emit(TrialStopped(trial=index + 1, **asdict(result)))
        return
    trial.set_user_attr("scores", asdict(result))
    trial.set_constraint("refusal_rate", result.rate - FEW)
    study.tell(trial, [result.rate, result.kl])
    emit(TrialScored(trial=index + 1, **asdict(result)))
