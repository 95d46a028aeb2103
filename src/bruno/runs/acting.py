"""The choke point: the one road to anything that spends, changes, stops or deletes.

Before the call: the permit is used up in the records (once for each action of its plan) and the act is written down. After
it: the outcome. A lost reply leaves the outcome `unknown`, to be settled by asking the provider, never by trying again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event
from typing import TYPE_CHECKING, Any

from bruno.errors import BrunoError, Denied, Unreachable
from bruno.fleet import acts, waits
from bruno.fleet.errors import OutcomeUnknown, RentedButStopped
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import key_pair, same_key
from bruno.fleet.models import Instance, State
from bruno.fleet.output import Hear
from bruno.guard.actions import (
    Action,
    CreateInstance,
    DestroyInstance,
    RegisterKey,
    RunCommand,
    RunLocal,
    RunPlaybook,
    StartInstance,
    StopInstance,
)
from bruno.guard.holds import LIFT, prevents
from bruno.guard.permit import required
from bruno.records.tables import Outcome, RunState
from bruno.runs.commands import run_shell_line
from bruno.runs.investigate import active_holds

if TYPE_CHECKING:
    from bruno.guard.permit import Permit
    from bruno.records import Act
    from bruno.runs.world import World

Result = dict[str, Any]

GRACE = timedelta(seconds=90)
"""How long after an act was begun the provider's silence about it proves nothing: requests and lists may lag."""
GONE_WITHIN = timedelta(minutes=2)


def _unheard(_stream: str, _line: str) -> None:
    """The output of nothing that prints."""


def perform(
    action: Action,
    permit: Permit | None,
    world: World,
    *,
    run_id: str | None = None,
    plan_id: str = "",
    hear: Hear = _unheard,
    cancel: Event | None = None,
) -> Result:
    """Carry out one action of a confirmed plan.

    Args:
        permit: None is enough only for a shell line that the guard allows (its verdict is taken again at the act);
            `plan_id` then says which plan it belongs to.
        hear, cancel: for shell lines: called with each line of output; ends the line.

    Returns:
        What came of it, as recorded: `{"instance_id": 101}` for CreateInstance and StartInstance;
        `{"instance_id", "status"}` for StopInstance (polled until the provider says stopped) and DestroyInstance (until it
        says gone); `{"exit_code", "ended"}` for shell lines; `{}` otherwise. RunPlaybook is only recorded here:
        `Runner.carry_on` carries it out under that record.

    Raises:
        Denied: the permit is not genuine, expired, does not contain the action, or was used before (by whomever); a concern
            holds what it is about; or STOP was said since it was confirmed.
        FactsChanged: the provider's facts are no longer those of the plan; nothing was done.
        OutcomeUnknown: it may or may not have happened; recorded so.
        BrunoError: it did not happen; recorded as failed.
    """
    records = world.records
    _not_on_hold(action, world, run_id)
    if permit is not None:
        permit.require(action, now=world.clock())
        records.use_permit(
            permit.plan_id,
            seal=permit.seal,
            origin=permit.origin.value,
            minted_at=permit.minted_at,
            run_id=run_id,
            kind=action.kind,
        )
    elif not isinstance(action, RunCommand | RunLocal) or required(action):
        raise Denied("this needs a confirmation; nothing was done", fix="Type the word it asks for")
    plain = action.model_dump(mode="json")
    act = records.begin_act(
        plan_id=permit.plan_id if permit else plan_id,
        action=plain,
        label=_label(action),
        run_id=run_id,
        allowed=permit is None,
        planned_at=permit.plan.created_at if permit else None,
    )
    number = int(act.act_id or 0)
    if isinstance(action, RunPlaybook):
        return {}  # stays pending until the runner has carried it out
    try:
        heard = {"hear": hear, "cancel": cancel or Event()} if isinstance(action, RunCommand | RunLocal) else {}
        result = _CALLS[type(action)](action, permit, world, **heard)
    except OutcomeUnknown as error:
        records.end_act(number, Outcome.UNKNOWN, problem=str(error))
        raise
    except RentedButStopped as error:
        _note_rented(action, error.instance_id, world, run_id)
        left = {"instance_id": error.instance_id}
        records.end_act(number, Outcome.FAILED, result=left, problem=str(error))
        raise
    except BrunoError as error:
        records.end_act(number, Outcome.FAILED, problem=str(error))
        raise
    except BaseException as error:
        # A defect or a Ctrl-C in the middle of the call: the request may be on its way.
        records.end_act(number, Outcome.UNKNOWN, problem=f"{type(error).__name__}: {error}")
        raise
    _after(action, result, world, run_id)
    records.end_act(number, Outcome.DONE, result=result)
    return result


def _not_on_hold(action: Action, world: World, run_id: str | None) -> None:
    for hold in active_holds(world.records):
        if prevents(hold, action, run_id):
            raise Denied(f"not begun: {hold.reason()}", fix=LIFT)


def settle(act: Act, world: World) -> Act:
    """Ask the provider what became of an act whose outcome is pending or unknown, and record what it says.

    Within `GRACE` of its beginning an act that cannot be seen stays unknown. RunPlaybook is the runner's to settle.

    Raises:
        Unreachable: the provider cannot be asked; the outcome stays unknown.
    """
    action = _ACTIONS[act.kind].model_validate(act.action)
    if act.outcome in (Outcome.DONE.value, Outcome.FAILED.value) or isinstance(action, RunPlaybook):
        return act
    number = int(act.act_id or 0)
    if isinstance(action, RunCommand | RunLocal):
        return _settle_shell_line(act, action, world)
    result = _seen(action, world)
    if result is not None:
        _after(action, result, world, act.run_id)
        return world.records.end_act(number, Outcome.DONE, result=result)
    if world.clock() - act.begun_at < GRACE:
        return world.records.end_act(number, Outcome.UNKNOWN, problem=act.problem or "the reply was lost")
    problem = "the provider shows no trace of it: it did not happen"
    return world.records.end_act(number, Outcome.FAILED, problem=problem)


def _settle_shell_line(act: Act, action: RunCommand | RunLocal, world: World) -> Act:
    """Nobody can be asked how a shell line ended: once it must be over, that stays unknown and is said so."""
    if act.outcome == Outcome.UNKNOWN.value or world.clock() - act.begun_at < GRACE + timedelta(seconds=action.seconds):
        return act  # another console may be hearing it
    problem = "bruno ended before the command did: how it ended is unknown"
    return world.records.end_act(int(act.act_id or 0), Outcome.UNKNOWN, problem=problem)


def settle_all(world: World) -> list[Act]:
    """Settle every act that an earlier process left open, as far as the provider answers; those still open afterwards.

    For a console's start: a stop or a rental whose process was killed is known again before anything new is asked for.
    """
    left = []
    for act in world.records.acts(unsettled=True):
        try:
            settled = settle(act, world)
        except Unreachable:
            settled = act
        if settled.outcome not in (Outcome.DONE.value, Outcome.FAILED.value) and act.kind != "run_playbook":
            left.append(settled)
    return left


# --- the calls ---


def _create(action: CreateInstance, permit: Permit, world: World) -> Result:
    return {"instance_id": acts.create(world.vast, action, permit, world.clock())}


def _start(action: StartInstance, permit: Permit, world: World) -> Result:
    world.records.note_instance(action.target.instance_id)  # the billing clock starts at this reading at the earliest
    acts.start(world.vast, action, permit, world.clock())
    return {"instance_id": action.target.instance_id}


def _stop(action: StopInstance, permit: Permit, world: World) -> Result:
    acts.stop(world.vast, action, permit, world.clock())
    shown = waits.wait_stopped(world.vast, action.target.instance_id)
    return {"instance_id": action.target.instance_id, "status": shown.state.value if shown else "gone"}


def _destroy(action: DestroyInstance, permit: Permit, world: World) -> Result:
    acts.destroy(world.vast, action, permit, world.clock())
    deadline = world.clock() + GONE_WITHIN
    while world.vast.instance(action.target.instance_id) is not None:
        if world.clock() >= deadline:
            raise OutcomeUnknown(
                f"instance {action.target.instance_id} is still shown after it was destroyed; it may still be billed",
                fix="Look at it again in a minute",
                instance_id=action.target.instance_id,
            )
        world.sleep(world.settings.fleet.poll_seconds)
    return {"instance_id": action.target.instance_id, "status": "gone"}


def _register(action: RegisterKey, permit: Permit, world: World) -> Result:
    public = key_pair(world.paths.keys).public_key
    acts.register_key(world.vast, action, permit, world.clock(), public_key=public)
    return {}


_CALLS: dict[type, Callable[..., Result]] = {
    RunCommand: run_shell_line,
    RunLocal: run_shell_line,
    CreateInstance: _create,
    StartInstance: _start,
    StopInstance: _stop,
    DestroyInstance: _destroy,
    RegisterKey: _register,
}
_ACTIONS: dict[str, Any] = {
    "create_instance": CreateInstance,
    "start_instance": StartInstance,
    "stop_instance": StopInstance,
    "destroy_instance": DestroyInstance,
    "register_key": RegisterKey,
    "run_playbook": RunPlaybook,
    "run_command": RunCommand,
    "run_local": RunLocal,
}


# --- what the provider shows of it afterwards ---


def _seen(action: Action, world: World) -> Result | None:
    """The result of an act that has happened, as the provider shows it; None when it shows no trace."""
    if isinstance(action, CreateInstance):
        found = world.vast.find_by_label(action.label)
        return {"instance_id": found.id} if found else None
    if isinstance(action, RegisterKey):
        public = key_pair(world.paths.keys).public_key
        return {} if any(same_key(public, known) for known in world.vast.ssh_keys()) else None
    if isinstance(action, RunPlaybook | RunCommand | RunLocal):
        return None
    shown = world.vast.instance(action.target.instance_id)
    if not _happened(action, shown):
        return None
    return {"instance_id": action.target.instance_id, "status": shown.state.value if shown else "gone"}


def _happened(action: StartInstance | StopInstance | DestroyInstance, shown: Instance | None) -> bool:
    if isinstance(action, StartInstance):
        return shown is not None and shown.intended_status == "running"
    if isinstance(action, StopInstance):
        return shown is None or shown.stopped
    return shown is None


def _after(action: Action, result: Result, world: World, run_id: str | None) -> None:
    """Bring the instance's own row up to what has happened."""
    if isinstance(action, CreateInstance):
        _note_rented(action, result["instance_id"], world, run_id)
    elif isinstance(action, StopInstance | DestroyInstance):
        gone = result["status"] == "gone"
        number = action.target.instance_id
        row = world.records.note_instance(
            number, running=False, gone=gone, label=action.target.label, status=result["status"]
        )
        if gone:
            HostKeys(world.paths.known_hosts).forget(number)
        _end_run(row.run_id, world)


def _note_rented(action: Action, instance_id: int, world: World, run_id: str | None) -> None:
    if isinstance(action, CreateInstance):
        world.records.note_instance(
            instance_id,
            label=action.label,
            run_id=run_id,
            machine_id=action.machine_id,
            gpu=action.gpu,
            gpu_count=action.gpu_count,
            disk_gb=action.disk_gb,
            dph_total=action.max_dph,  # the most it can be, until the provider shows the price
            rented_at=world.clock(),
        )


def note_shown(instance: Instance, world: World, run_id: str | None = None) -> None:
    """Record an instance as the provider shows it now; its state moves the billing clocks."""
    storage, disk = instance.storage_cost, instance.disk_gb
    running = {State.RUNNING: True, State.STOPPED: False, State.LOST: False, State.FAILED: False}.get(instance.state)
    endpoint = instance.endpoints[0] if instance.endpoints else None
    world.records.note_instance(
        instance.id,
        running=False if instance.state is State.PROVISIONING else running,
        label=instance.label,
        run_id=run_id,
        status=instance.state.value,
        dph_total=instance.dph_total,
        disk_per_hour=None if storage is None or disk is None else storage * disk / 720,
        disk_gb=disk,
        ssh_host=endpoint.host if endpoint else None,
        ssh_port=endpoint.port if endpoint else None,
    )


def _end_run(run_id: str | None, world: World) -> None:
    """A run whose instance was stopped or destroyed has ended, unless it was finished before."""
    for run in world.records.runs(open_only=True):
        if run.run_id == run_id:
            world.records.update_run(run.run_id, state=RunState.ENDED.value)
            for act in world.records.acts(run_id=run_id, unsettled=True):
                if act.kind == "run_playbook" and act.act_id is not None:
                    problem = "its instance was stopped or destroyed before it was carried out whole"
                    world.records.end_act(act.act_id, Outcome.FAILED, problem=problem)


def _label(action: Action) -> str:
    if isinstance(action, CreateInstance):
        return action.label
    if isinstance(action, StartInstance | StopInstance | DestroyInstance | RunCommand):
        return action.target.label
    return ""
