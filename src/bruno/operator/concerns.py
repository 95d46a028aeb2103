"""What the person reports: shown beside what every source says, kept, and from the second time on a hold until it is resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bruno.errors import BrunoError, Denied, InputError, Unreachable
from bruno.fleet.models import State
from bruno.guard.sanitise import safe_line
from bruno.intents import ReportTrouble, ResolveConcern
from bruno.operator.card import worded
from bruno.operator.stop import open_host
from bruno.operator.views import Answer, RunView
from bruno.records.tables import StepState
from bruno.runs.evidence import Item, gather
from bruno.runs.investigate import active_holds, investigate, report

if TYPE_CHECKING:
    from bruno.fleet.host import Host
    from bruno.fleet.models import Instance
    from bruno.operator.service import Operator
    from bruno.records import Concern, Run
    from bruno.runs.world import World

_HEADS = ("what", "value", "source", "note")
_STARTS = ("install", "smoke", "launch")
"""Steps that start something on the machine."""
TO_LIFT = 'When you know what it was, say it: "resolved: ..."'


def trouble(operator: Operator, intent: ReportTrouble, *_: Any) -> Answer:
    """The person says one thing, the data another: both are shown, with sources, and neither is called fine."""
    world = operator.world
    run = world.records.run(operator.latest_run(intent.target).run_id)
    concern = report(world, run, intent.words)
    instance, problem = _shown(world, run)
    host, silent = _reached(world, instance)
    try:
        evidence = investigate(world, run, concern, instance, host, problem)
    finally:
        if host:
            host.close()
    rows = [_HEADS, ("you", str(safe_line(intent.words)), "person", _times(concern))]
    rows += [_row(item) for item in evidence.items]
    rows += [row for place, worker in _other_workers(world, run) for row in _worker_rows(world, place, worker)]
    head = f"discrepancy: you say {safe_line(intent.words)!r}. This is what each source says about {run.run_id}"
    if concern.held_at is not None:
        head = (
            f"ON HOLD: you say {safe_line(intent.words)!r}, reported {len(concern.words)} times. Nothing is rented and nothing "
            f"new is begun for {run.run_id} until it is resolved; looking, STOP and stopping its instance stay possible. "
            f"{TO_LIFT}. This is what each source says"
        )
    notes = [silent] if silent else []
    return Answer(text=". ".join([head, *notes, *evidence.disagreements]), rows=tuple(rows), failed=True)


def resolve(operator: Operator, intent: ResolveConcern, *_: Any) -> Answer:
    """The person says what it was. Without an open concern the words resolve the discrepancies of the one run that has any."""
    records = operator.records
    rows = records.concerns()
    if intent.number is not None:
        rows = [row for row in rows if row.concern_id == intent.number]
    if not rows and intent.number is None:
        return _resolve_discrepancies(operator, intent.words)
    if len(rows) != 1:
        listed = ", ".join(f"{row.concern_id} ({_said(row)})" for row in records.concerns()) or "none"
        raise InputError(
            f"{'several concerns are' if rows else 'no such concern is'} open: {listed}",
            fix='Say which: "resolved NUMBER: ..."',
        )
    row = records.resolve_concern(int(rows[0].concern_id or 0), intent.words)
    lifted = f"; the hold on {row.run_id} is lifted" if row.held_at is not None else ""
    left = records.concerns(row.run_id, held=True)
    still = f", but concern {left[0].concern_id} still holds it" if left else ""
    return Answer(text=f"resolved: {_said(row)}: {safe_line(intent.words, 400)}{lifted}{still}")


def show_concerns(operator: Operator, *_: Any) -> Answer:
    """Everything that was reported and is not resolved."""
    rows = [
        (str(row.concern_id), row.run_id, _said(row), _times(row), "on hold" if row.held_at else "noted")
        for row in operator.records.concerns()
    ]
    if not rows:
        return Answer(text="no concern is open, nothing is on hold")
    said = [
        f"{row.concern_id}: {line}" for row in operator.records.concerns() for line in row.evidence
    ]  # what the sources said then
    text = "\n".join([f"open concerns. {TO_LIFT}", *(str(safe_line(line, 320)) for line in said)])
    return Answer(text=text, rows=(("number", "run", "you said", "times", "state"), *rows))


def refuse_while_held(operator: Operator, run: RunView, *, retry: bool) -> None:
    """Raise Denied when carrying this run on would start something although a concern holds it. Following is looking."""
    records = operator.records
    ids = [worker.run_id for worker in run.workers] or [run.run_id]
    waiting = [row for each in ids for row in records.steps(each) if row.state != StepState.DONE.value]
    if not retry and not any(row.name in (*_STARTS, "rent") for row in waiting):
        return
    for hold in active_holds(records):
        if hold.run_id == run.run_id or any(row.name == "rent" for row in waiting):
            raise Denied(f"{run.run_id} is on hold: {hold.reason()}", fix=TO_LIFT)


def _other_workers(world: World, run: Run) -> list[tuple[int, Run]]:
    """The other instances of a run over several, with their places."""
    rows = world.records.group(run.group_id) if run.group_id else []
    return [(place, row) for place, row in enumerate(rows, 1) if row.run_id != run.run_id]


def _worker_rows(world: World, place: int, run: Run) -> list[tuple[str, ...]]:
    """What another instance of the run says of itself, each item named as that worker's."""
    instance, problem = _shown(world, run)
    host, silent = _reached(world, instance)
    try:
        found = [_row(item) for item in gather(world, run, host).items]
    finally:
        if host:
            host.close()
    why = [("reached", "no", "host", silent or problem)] if silent or problem else []
    return [(f"worker {place}: {name}", *rest) for name, *rest in (*why, *found)]


def _shown(world: World, run: Run) -> tuple[Instance | None, str]:
    if run.instance_id is None:
        return None, "no instance was rented for it yet"
    try:
        return world.vast.instance(run.instance_id), ""
    except Unreachable as error:
        return None, str(safe_line(f"could not be asked: {error.message}"))


def _reached(world: World, instance: Instance | None) -> tuple[Host | None, str]:
    if instance is None:
        return None, ""
    if instance.state is not State.RUNNING:
        return None, f"the machine could not be asked: the provider says it is {instance.state.value}"
    try:
        return open_host(instance, world), ""
    except BrunoError as error:  # why the machine is silent is evidence to show, not a reason to stop looking
        return None, f"the machine could not be asked: {safe_line(str(error), 300)}"


def _row(item: Item) -> tuple[str, ...]:
    return item.name.replace("_", " "), str(safe_line(worded(item.value))), item.source, str(safe_line(item.note))


def _resolve_discrepancies(operator: Operator, words: str) -> Answer:
    records = operator.records
    found = {run.run_id: rows for run in records.runs() if (rows := records.discrepancies(run.run_id))}
    if len(found) != 1:
        names = f" ({', '.join(found)})" if found else ""
        raise InputError(
            f"no concern is open, and discrepancies are open in {len(found)} runs{names}", fix="See: concerns, progress"
        )
    ((run_id, rows),) = found.items()
    for row in rows:
        records.resolve_discrepancy(int(row.discrepancy_id or 0), words)
    return Answer(text=f"resolved: {len(rows)} discrepancies of {run_id}: {safe_line(words, 400)}")


def _said(row: Concern) -> str:
    return " / ".join(dict.fromkeys(str(safe_line(each, 120)) for each in row.words))


def _times(row: Concern) -> str:
    return "reported once" if len(row.words) == 1 else f"reported {len(row.words)} times"
