"""STOP: let go of what can be let go of, begin nothing new anywhere on these records, say what runs on and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bruno.errors import BrunoError
from bruno.operator.views import Answer, InstancesView, InstanceView, RunView
from bruno.records.acts import STOP

if TYPE_CHECKING:
    from bruno.operator.service import Operator

_NOT_BILLED_FOR_GPU = ("stopped", "lost", "failed")


def stop_everything(operator: Operator, *_: Any) -> Answer:
    """What was confirmed before this is not begun after it, in this console and in any other on the same records.

    Nothing on a machine is ended: an engine that is killed loses what it has not saved, and that is a stop with its own `yes`.
    """
    count = operator.cancel_all()
    operator.records.audit(STOP, {"let_go": count})
    things = "thing" if count == 1 else "things"
    head = (
        f"STOP: let go of {count} {things} under way here; nothing new is started: what was confirmed before and has not begun "
        "begins in no console."
    )
    unsettled = len(operator.records.acts(unsettled=True))
    if unsettled:
        head += f" {unsettled} act(s) were on their way already; their outcome is asked for, not guessed."
    try:
        view = operator.instances(fresh=True)
    except BrunoError as error:
        return Answer(text=f"{head} What runs on, and what it costs, is unknown: {error}", failed=True)
    if not view.known:
        return Answer(text=f"{head} What runs on, and what it costs, is unknown: {view.problem}", failed=True)
    rows = [("instance", "label", "status", "$/h now", "runs on", "$ per day when stopped")]
    all_runs = operator.runs()
    runs = {worker.instance_id: run for run in all_runs for worker in run.workers or (run,)}
    rows += [_row(each, runs.get(each.instance_id)) for each in view.rows]
    return Answer(text=f"{head} {_left(view)}", rows=tuple(rows) if view.rows else ())


def _row(instance: InstanceView, run: RunView | None) -> tuple[str, ...]:
    per_hour = "0.000" if instance.status in _NOT_BILLED_FOR_GPU else _dollars(instance.per_hour)
    return (
        str(instance.instance_id),
        instance.label,
        instance.status,
        per_hour,
        _what(run) if run is not None and run.state.live else "",
        _dollars(instance.stopped_per_day),
    )


def _what(run: RunView) -> str:
    trial = f", trial {run.trial} of {run.trials or 'unknown'}" if run.trial is not None else ""
    return f"{run.run_id}: {run.state.value}{trial}"


def _left(view: InstancesView) -> str:
    """What all of it costs per hour; a price that is not known is said, never counted as nothing."""
    billed = [each for each in view.rows if each.status not in _NOT_BILLED_FOR_GPU]
    if not view.rows:
        return "The account has no instance: nothing runs on."
    known = [each.per_hour for each in billed if each.per_hour is not None]
    unknown = len(billed) - len(known)
    cost = f"${sum(known):.3f}/h"
    if unknown:
        cost = f"at least {cost}; the price of {unknown} is unknown"
    return f"{len(billed)} of {len(view.rows)} instance(s) run on: {cost}. To stop one: stop <id>"


def _dollars(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
