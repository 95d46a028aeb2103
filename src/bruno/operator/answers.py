"""Intent -> reply. One small function an intent; a table names them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno.errors import InputError, Unreachable
from bruno.guard.permit import Origin
from bruno.guard.sanitise import safe_line
from bruno.intents import (
    ChatWith,
    FetchModel,
    Intent,
    LiftConstraint,
    ResumeRun,
    SetConstraint,
    ShowOffers,
    ShowProgress,
    StartRun,
    WatchRun,
)
from bruno.operator.commands import on_instance
from bruno.operator.concerns import resolve, show_concerns, trouble
from bruno.operator.ending import end
from bruno.operator.halt import stop_everything
from bruno.operator.look import offer_view
from bruno.operator.market import find_offers
from bruno.operator.resolve import find_gpu
from bruno.operator.spread import question, spread_of
from bruno.operator.start import plan_start
from bruno.operator.views import Answer, Ask, Instances, Offers, Progress, Reply, Talk, Watch

if TYPE_CHECKING:
    from bruno.operator.service import Operator

SHOW_DISK_GB = 100.0
"""Disk that offers are priced with when no model was named."""


def answer(operator: Operator, intent: Intent, origin: Origin, words: str) -> Reply:
    """The reply to one intent. Reads the world; changes nothing but standing instructions."""
    return _ANSWERS[intent.kind](operator, intent, origin, words)


def _start(operator: Operator, intent: StartRun, origin: Origin, words: str) -> Reply:
    unclear = question(intent, operator.settings)
    if unclear:
        return Ask(clarification=unclear)
    spread = spread_of(intent, operator.settings, local=operator.sandbox)
    listing = operator.world.vast.instances()
    plan = plan_start(intent, operator.world, listing, operator.account(), operator.rules.disk, spread=spread)
    return operator.card(plan, origin=origin, words=words, listing=listing)


def _progress(operator: Operator, intent: ShowProgress, *_: Any) -> Reply:
    if intent.target:
        return Progress(runs=(operator.looked_at(operator.run(intent.target)),))
    runs = operator.runs()
    live = tuple(operator.looked_at(run) for run in runs if run.state.live)
    if not runs:
        return Answer(text="there are no runs yet", suggestions=("start demo on an H200",))
    return Progress(runs=live or runs[:1])


def _watch(operator: Operator, intent: WatchRun | ResumeRun, *_: Any) -> Reply:
    return Watch(run_id=operator.latest_run(intent.target).run_id, retry=intent.kind == "resume_run")


def _instances(operator: Operator, *_: Any) -> Reply:
    return Instances(view=operator.instances(fresh=True))


def _runs(operator: Operator, *_: Any) -> Reply:
    return Progress(runs=operator.runs())


def _offers(operator: Operator, intent: ShowOffers, *_: Any) -> Reply:
    gpu = find_gpu(intent.gpu, operator.settings) if intent.gpu else None
    found = find_offers(operator.world, gpu, count=intent.count, disk_gb=SHOW_DISK_GB, max_dph=intent.max_dph)
    if not found:
        ceiling = f" under ${intent.max_dph:g}/h" if intent.max_dph else ""
        return Answer(text=f"no offers for {gpu.name if gpu else 'any GPU'}{ceiling} right now", failed=True)
    return Offers(rows=tuple(offer_view(offer) for offer in found))


def _costs(operator: Operator, *_: Any) -> Reply:
    view = operator.instances(fresh=True)
    rows: list[tuple[str, ...]] = [("run or instance", "state", "$/h now", "$ so far", "$ per day when stopped")]
    for run in operator.runs():
        rows.append((run.run_id, run.state.value, _dollars(run.per_hour), _dollars(run.spent), ""))
        rows += [
            (f"  of it {each.label}", each.state.value, _dollars(each.per_hour), _dollars(each.spent), "")
            for each in run.workers
            if each.instance_id is not None
        ]
    rows += [
        (
            f"{each.instance_id} {each.label}",
            each.status,
            _dollars(each.per_hour),
            "unknown",
            _dollars(each.stopped_per_day),
        )
        for each in view.rows
        if each.run_id is None
    ]
    credit = f"${view.credit:.2f}" if view.credit is not None else "unknown"
    known = (
        ""
        if view.known
        else f" The provider's list could not be read ({view.problem}): what else is billed is unknown."
    )
    return Answer(
        text=f"credit left: {credit}.{known}",
        rows=tuple(rows),
        failed=not view.known,
        exit_code=None if view.known else Unreachable.exit_code,
    )


def _dollars(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _fetch(operator: Operator, intent: FetchModel, *_: Any) -> Reply:
    run = operator.latest_run(intent.target)
    if run.local_model:
        return Answer(text=f"the model of {run.run_id} is home already: {run.local_model}")
    return Watch(run_id=run.run_id)


def _chat(operator: Operator, intent: ChatWith, *_: Any) -> Reply:
    models = operator.local_models()
    name = intent.model
    if name is None:
        if not models:
            raise InputError("no model is at home yet", fix="Finish a run first, or name a folder: bruno chat FOLDER")
        runs = [run for run in operator.runs() if run.local_model]
        name = runs[0].run_id if runs else next(iter(models))
    beside = next((run.model for run in operator.runs() if name in (run.run_id, run.local_model)), None)
    if name in models:
        return Talk(model=str(models[name]), beside=beside)
    if Path(name).expanduser().is_dir() or name == "demo" or "/" in name:
        return Talk(model=name, beside=beside)
    raise InputError(f"no model {name!r} at home", fix=f"At home: {', '.join(models) or 'none'}")


def _set_constraint(operator: Operator, intent: SetConstraint, *_: Any) -> Reply:
    operator.world.records.add_constraint(intent)
    return Answer(
        text=f'kept: "{safe_line(intent.words)}" is held against every later plan. To take it back: forget the instruction'
    )


def _constraints(operator: Operator, *_: Any) -> Reply:
    rows = [
        (str(row.constraint_id), row.words, row.rule.replace("_", " ")) for row in operator.world.records.constraints()
    ]
    if not rows:
        return Answer(text="no instructions are in force")
    return Answer(text="instructions in force", rows=(("number", "your words", "rule"), *rows))


def _lift(operator: Operator, intent: LiftConstraint, *_: Any) -> Reply:
    rows = operator.world.records.constraints()
    if intent.number is None and len(rows) != 1:
        raise InputError(f"{len(rows)} instructions are in force", fix="Say which: forget instruction NUMBER")
    row = rows[0] if intent.number is None else next((r for r in rows if r.constraint_id == intent.number), None)
    if row is None or row.constraint_id is None:
        raise InputError(f"no instruction {intent.number} is in force", fix="See: instructions")
    operator.world.records.lift_constraint(row.constraint_id)
    return Answer(text=f'taken back: "{row.words}"')


def _help(operator: Operator, *_: Any) -> Reply:
    seen: dict[str, str] = {}
    for words, kind, _fields in operator.grammar.examples():
        seen.setdefault(kind, words)
    return Answer(text="things to say", suggestions=tuple(seen.values()))


_ANSWERS: dict[str, Callable[..., Reply]] = {
    "start_run": _start,
    "stop_instance": end,
    "destroy_instance": end,
    "watch_run": _watch,
    "resume_run": _watch,
    "show_progress": _progress,
    "show_instances": _instances,
    "show_runs": _runs,
    "show_offers": _offers,
    "show_costs": _costs,
    "fetch_model": _fetch,
    "chat_with": _chat,
    "stop_everything": stop_everything,
    "set_constraint": _set_constraint,
    "show_constraints": _constraints,
    "lift_constraint": _lift,
    "run_command": on_instance,
    "report_trouble": trouble,
    "resolve_concern": resolve,
    "show_concerns": show_concerns,
    "show_help": _help,
}
