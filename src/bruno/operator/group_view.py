"""A run over several instances as one view: trials of all its workers' logs together, a line for each worker, one bill.

Nothing is smoothed over: a trial that two logs claim, or that no log shows, is said. Reads records and the logs at home.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from bruno.operator.look import run_view
from bruno.operator.views import RunState, RunView, TrialView, WorkerView
from bruno.records import Records, Run
from bruno.settings.paths import Paths


def views(rows: Sequence[Run], records: Records, paths: Paths, now: datetime) -> tuple[RunView, ...]:
    """The rows as views, in their order; those of one group as one, where its first stands."""
    out = []
    for row in rows:
        if row.group_id is None:
            out.append(run_view(row, records, paths, now))
        elif row.group_id == row.run_id:
            out.append(group_view(records.group(row.run_id), records, paths, now))
    return tuple(out)


def group_view(rows: Sequence[Run], records: Records, paths: Paths, now: datetime) -> RunView:
    """One run over the instances of these rows, the first one's first. Its state is the first one's, which makes the model."""
    each = [run_view(row, records, paths, now) for row in rows]
    first = each[0]
    history, disputed = _together(each)
    stopped, failed = sum(view.stopped_trials for view in each), sum(view.failed_trials for view in each)
    over = len(history) + stopped + failed
    trials = max((view.trials for view in each if view.trials), default=None)
    live = [view for view in each if view.state.live and view.read_at is not None]
    rented = [view for view in each if view.instance_id is not None]
    own = (f"worker {place}: {text}" for place, view in enumerate(each, 1) for text in view.discrepancies)
    return first.model_copy(
        update={
            "gpu": _gpus(rented),
            "trial": over if over or first.trial is not None else None,
            "trials": trials,
            "initial": next((view.initial for view in each if view.initial), None),
            "last": history[-1] if history else None,
            "best": min(history, key=_rank, default=None),
            "history": tuple(history),
            "stopped_trials": stopped,
            "failed_trials": failed,
            "remaining_seconds": max((view.remaining_seconds for view in live if view.remaining_seconds), default=None),
            "spent": _sum([view.spent for view in rented]),
            "per_hour": _sum([view.per_hour for view in rented]),
            "discrepancies": (*own, *disputed, *_missing(first, over, trials), *_initials(each)),
            "read_at": min((view.read_at for view in live if view.read_at), default=first.read_at),
            "workers": tuple(_worker(place, view) for place, view in enumerate(each, 1)),
        }
    )


def _together(each: Sequence[RunView]) -> tuple[list[TrialView], list[str]]:
    """Every scored trial by number, and what two logs say differently, or both claim."""
    found: dict[int, tuple[int, TrialView]] = {}
    disputed = []
    for place, view in enumerate(each, 1):
        for trial in view.history:
            if trial.number not in found:
                found[trial.number] = (place, trial)
                continue
            other, before = found[trial.number]
            said = f"worker {other} says {_count(before)}, worker {place} says {_count(trial)}"
            disputed.append(f"trial {trial.number} is scored in two logs: {said}")
    return [found[number][1] for number in sorted(found)], disputed


def _missing(first: RunView, over: int, trials: int | None) -> Iterator[str]:
    """A run that is done has a result for every trial; one that no log shows was lost with its worker's log."""
    if first.state is RunState.DONE and trials is not None and over < trials:
        yield f"trials: the study has {trials}, the logs that came home show the results of {over}"


def _initials(each: Sequence[RunView]) -> Iterator[str]:
    said = {view.initial for view in each if view.initial}
    if len(said) > 1:
        counts = ", ".join(
            f"worker {place} says {view.initial[0]}/{view.initial[1]}"
            for place, view in enumerate(each, 1)
            if view.initial
        )
        yield f"refusals at the start: {counts}"


def _worker(place: int, view: RunView) -> WorkerView:
    return WorkerView(
        number=place,
        run_id=view.run_id,
        instance_id=view.instance_id,
        label=view.label,
        gpu=view.gpu,
        state=view.state,
        step=view.step,
        scored=len(view.history),
        last=view.last,
        spent=view.spent,
        per_hour=view.per_hour,
        problem=view.problem,
        read_at=view.read_at,
    )


def _count(trial: TrialView) -> str:
    return f"{trial.refusals}/{trial.prompts}"


def _rank(trial: TrialView) -> tuple[int, float, int]:
    """Fewest refusals, then least KL (an absent one last), then the earlier trial: as one log's best is chosen."""
    return trial.refusals, float("inf") if trial.kl is None else trial.kl, trial.number


def _sum(amounts: list[float | None]) -> float | None:
    """Together; unknown when one of them is, and when there is nothing yet."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None


def _gpus(rented: Sequence[RunView]) -> str:
    kinds = " or ".join(dict.fromkeys(view.gpu for view in rented if view.gpu))
    return f"{len(rented)} instances, {kinds} each" if len(rented) > 1 else kinds
