"""Plans carried out. Everything that changes the world goes through `runs.acting` or the runner, each with the permit."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

from bruno.errors import BrunoError, Denied, RunFailed
from bruno.guard.actions import Action, DestroyInstance, RunCommand, RunLocal, RunPlaybook, StopInstance
from bruno.guard.permit import Permit
from bruno.guard.plan import Plan
from bruno.guard.sanitise import safe
from bruno.operator.views import Answer, Happening
from bruno.records.tables import RunState
from bruno.runs.acting import perform
from bruno.runs.events import Kind, RunEvent
from bruno.runs.runner import Runner
from bruno.settings.secrets import redact

if TYPE_CHECKING:
    from bruno.operator.service import OnHappening, Operator

_LEVELS = {
    Kind.WARNING: "warn",
    Kind.DISCREPANCY: "warn",
    Kind.FAILED: "bad",
    Kind.FINISHED: "good",
    Kind.STEP_DONE: "good",
}
_QUIET = frozenset({Kind.LOG, Kind.PROGRESS, Kind.TRANSFER})
"""Kinds that a face shows as a view, not as a line each."""


def carry_out(
    operator: Operator, plan: Plan, permit: Permit | None, *, on_event: OnHappening, follow: bool, cancel: Event
) -> Answer:
    """Every step of a confirmed plan, in order. A run's own steps are the runner's."""
    if len(plan.steps) == 1 and isinstance(plan.steps[0].action, RunCommand | RunLocal):
        return _run_line(operator, plan, plan.steps[0].action, permit, on_event=on_event, cancel=cancel)
    if permit is None:
        raise Denied("this plan needs a confirmation", fix="Type the word it asks for")
    playbook = next((step.action for step in plan.steps if isinstance(step.action, RunPlaybook)), None)
    if playbook is not None:
        runner = Runner(operator.world)
        run_id = runner.begin(
            plan, permit, model=playbook.model, settings=playbook.settings, behaviour=playbook.behaviour
        )
        return follow_run(operator, run_id, on_event=on_event, cancel=cancel, until_launch=not follow)
    if len(plan.steps) > 1 and all(isinstance(step.action, StopInstance) for step in plan.steps):
        return _stop_all(operator, plan, permit, on_event)
    told = [_do(operator, plan, step.action, permit, on_event) for step in plan.steps]
    return Answer(text="; ".join(told))


def _do(operator: Operator, plan: Plan, action: Action, permit: Permit, on_event: OnHappening) -> str:
    """One step, told before and after."""
    on_event(_say(operator, action.describe(), plan.run_id))
    result = perform(action, permit, operator.world, run_id=plan.run_id)
    told = _outcome(action, result, plan)
    on_event(_say(operator, told, plan.run_id, good=True))
    return told


def _stop_all(operator: Operator, plan: Plan, permit: Permit, on_event: OnHappening) -> Answer:
    """Each stop by itself: one that fails holds none of the others up, and what goes on costing is said."""
    told, failed = [], []
    for step in plan.steps:
        try:
            told.append(_do(operator, plan, step.action, permit, on_event))
        except BrunoError as error:
            failed.append(f"{step.action.describe()}: {error}")
            on_event(Happening(at=operator.world.clock(), level="bad", text=failed[-1], run_id=plan.run_id))
    if failed:
        raise RunFailed(
            f"{len(told)} of {len(plan.steps)} are stopped; not stopped, and billed: {'; '.join(failed)}",
            fix="See: bruno instances, then stop what is left",
        )
    return Answer(text="; ".join(told))


def _run_line(
    operator: Operator,
    plan: Plan,
    action: RunCommand | RunLocal,
    permit: Permit | None,
    *,
    on_event: OnHappening,
    cancel: Event,
) -> Answer:
    """A shell line: its output as it comes, sanitised line by line, and its exit code."""

    def hear(stream: str, line: str) -> None:
        text = str(safe(redact(line)))
        on_event(Happening(at=operator.world.clock(), level="output", text=text, stream=stream))  # type: ignore[arg-type]

    result = perform(action, permit, operator.world, run_id=plan.run_id, plan_id=plan.plan_id, hear=hear, cancel=cancel)
    code, how = int(result["exit_code"]), str(result["ended"])
    where = f"on instance {action.target.instance_id}" if isinstance(action, RunCommand) else "here"
    if how == "timed out":
        return Answer(text=f"ended {where} after {action.seconds:g} s: it took too long", failed=True, exit_code=code)
    if how == "cancelled":
        return Answer(text=f"called off: the command was ended {where}", failed=True, exit_code=code)
    return Answer(text=f"exit code {code} {where}", failed=code != 0, exit_code=code)


def follow_run(
    operator: Operator,
    run_id: str,
    *,
    on_event: OnHappening,
    cancel: Event,
    retry: bool = False,
    until_launch: bool = False,
) -> Answer:
    """The run from where its records leave it to its end, or until `cancel` is set."""

    def hear(event: RunEvent) -> None:
        on_event(_happening(event))

    until = "launch" if until_launch else None
    run = Runner(operator.world).carry_on(run_id, hear, cancel, retry=retry, until=until)
    view = operator.run(run.run_id)
    if run.state == RunState.FINISHED:
        best = f"; best {view.best.refusals}/{view.best.prompts} refusals" if view.best else ""
        machines = f"its {len(view.workers)} instances are stopped (say: stop {run.run_id})" if view.workers else ""
        until = machines or "the instance is stopped (say: stop it)"
        cost = f"; ${view.per_hour:.3f}/h goes on until {until}" if view.per_hour else ""
        return Answer(text=f"{run.run_id} is done: {run.local_model or 'no model was saved'}{best}{cost}")
    if run.state == RunState.ACTIVE:
        cost = f" at ${view.per_hour:.3f}/h" if view.per_hour is not None else ""
        there = [str(each.instance_id) for each in view.workers or (view,) if each.instance_id is not None]
        where = f"instance{'s' if len(there) > 1 else ''} {', '.join(there)}"
        return Answer(text=f"let go of {run.run_id}: it goes on without bruno on {where}{cost}")
    raise RunFailed(f"{run.run_id}: {run.problem or run.state}", fix="See: bruno progress, then resume or stop it")


def _outcome(action: object, result: dict[str, object], plan: Plan) -> str:
    if isinstance(action, StopInstance):
        per_day = plan.cost.stopped_per_day
        several = len(plan.steps) > 1
        cost = f"{'all their disks still cost' if several else 'its disk still costs'} ${per_day or 0:.2f} per day"
        if per_day is None:
            cost = "what its disk costs is unknown"
        return f"instance {action.target.instance_id} is stopped, the provider says so; {cost} until it is destroyed"
    if isinstance(action, DestroyInstance):
        return f"instance {action.target.instance_id} is gone, the provider says so; it costs nothing any more"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.items()) or "done"


def _happening(event: RunEvent) -> Happening:
    level = "quiet" if event.kind in _QUIET else _LEVELS.get(event.kind, "info")
    return Happening(at=event.at, level=level, text=str(event.text), run_id=event.run_id)  # type: ignore[arg-type]


def _say(operator: Operator, text: str, run_id: str | None, *, good: bool = False) -> Happening:
    return Happening(at=operator.world.clock(), level="good" if good else "info", text=text, run_id=run_id)
