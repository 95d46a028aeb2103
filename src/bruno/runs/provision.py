"""The steps that bring a machine up: rent, wait until it answers, make sure it is the right one and has room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bruno.errors import Denied, RunFailed
from bruno.fleet import waits
from bruno.fleet.errors import HostRefused
from bruno.fleet.models import Instance
from bruno.guard.actions import Action, CreateInstance, RegisterKey, StartInstance
from bruno.guard.disk import GB
from bruno.records.tables import Outcome, RunState
from bruno.runs import playbook as book
from bruno.runs.acting import GRACE, note_shown, perform, settle
from bruno.runs.events import Kind

if TYPE_CHECKING:
    from bruno.records import Act
    from bruno.runs.task import Task

Detail = dict[str, Any]


def rent(task: Task, _step: book.Rent) -> Detail:
    """Rent (or start) the plan's instance, once. What an earlier process began is asked about, never done again.

    Raises:
        Denied: nothing was rented and the confirmation is gone with the process that had it.
        FactsChanged, OfferGone, NoCredit, ...: nothing was rented. OutcomeUnknown: it may have been.
    """
    for step in task.plan.steps:
        if isinstance(step.action, RegisterKey):
            _do_once(task, step.action)
    action = acquiring(task)
    result = _do_once(task, action)
    number = int(result["instance_id"])
    task.world.records.update_run(task.run_id, instance_id=number, state=RunState.ACTIVE.value)
    return {"instance_id": number}


def acquiring(task: Task) -> CreateInstance | StartInstance:
    """The plan's one action that gets this row's machine: of several rentals, the one with its label."""
    found = [step.action for step in task.plan.steps if isinstance(step.action, CreateInstance | StartInstance)]
    if len(found) > 1:
        label = task.run.label
        found = [action for action in found if isinstance(action, CreateInstance) and action.label == label]
    if len(found) != 1:
        raise Denied(f"a run's plan rents or starts one instance, this one has {len(found)}")
    return found[0]


def _do_once(task: Task, action: Action) -> Detail:
    plain = action.model_dump(mode="json")
    act = task.world.records.act(task.plan.plan_id, plain)
    if act is None:
        if task.permit is None:
            raise Denied(
                f"this was confirmed but not begun before bruno ended: {action.describe()}",
                fix="Nothing was rented. Ask for the plan again and confirm it",
            )
        return perform(action, task.permit, task.world, run_id=task.run_id)
    act = _settled(task, act)
    if act.outcome == Outcome.FAILED.value:
        raise Denied(
            f"this did not happen: {action.describe()} ({act.problem})", fix="Ask for the plan again and confirm it"
        )
    return act.result


def _settled(task: Task, act: Act) -> Act:
    """What became of an act that an earlier process left open: asked until the provider tells, or `GRACE` is over."""
    while act.outcome not in (Outcome.DONE.value, Outcome.FAILED.value):
        task.tell(Kind.WAITING, f"asking the provider what became of: {act.kind.replace('_', ' ')} {act.label}")
        act = settle(act, task.world)
        if act.outcome == Outcome.UNKNOWN.value:
            task.rest(min(task.poll, GRACE.total_seconds()))
    return act


def wait_ready(task: Task, step: book.WaitReady) -> Detail:
    """Wait until the provider says running and SSH answers. Loading means wait; nothing is stopped here.

    Raises:
        NotReady, InstanceGone: with what the provider shows and what it costs. HostRefused: running, but no SSH.
    """
    minutes = step.minutes or task.world.settings.fleet.ready_minutes
    said: list[str] = []

    def polled(shown: Instance | None) -> None:
        text = "no answer from the provider" if shown is None else f"{shown.state.value}: {shown.status_msg or '...'}"
        if shown is not None:
            note_shown(shown, task.world, task.run_id)
        if said[-1:] != [text]:
            said.append(text)
            task.tell(Kind.WAITING, f"instance {task.instance_id} is {text}")

    over = task.deadline(minutes)
    waits.wait_running(
        task.world.vast, task.instance_id, minutes=minutes, poll_seconds=task.poll, on_poll=polled, cancel=task.cancel
    )
    while True:
        try:
            host = task.host(patience=60)
        except HostRefused as error:
            if over():
                raise
            task.tell(Kind.WAITING, f"it runs, but SSH does not answer yet: {error.message}")
        else:
            return {"endpoint": f"{host.endpoint.host}:{host.endpoint.port}"}


def identify(task: Task, _step: book.Identify) -> Detail:
    """The label file must name this instance; the link was opened against its pinned host key."""
    label = task.on_host(lambda host: host.identify())
    task.world.records.observe(
        source="host", subject="label file", value=label, run_id=task.run_id, instance_id=task.instance_id
    )
    return {"label_file": label}


def check_disk(task: Task, step: book.CheckDisk) -> Detail:
    """Free disk must hold the model twice (as downloaded and as saved) and `spare_gb`. Unknown is not enough."""
    fact = task.plan.fact("model_bytes")
    if fact is None or not isinstance(fact.value, int | float):
        raise RunFailed("the model's size is unknown, so whether it fits cannot be said")
    need = 2 * fact.value / GB + step.spare_gb
    free = task.on_host(lambda host: host.free_disk(host.workspace()))
    task.world.records.observe(
        source="disk", subject="free bytes", value=free, run_id=task.run_id, instance_id=task.instance_id
    )
    sum_ = f"2 x {fact.value / GB:.1f} GB + {step.spare_gb:g} GB = {need:.1f} GB"
    if free is None:
        raise RunFailed(f"the machine does not say how much disk is free ({sum_} are needed)", fix="Look at it by hand")
    if free < need * GB:
        raise RunFailed(
            f"the disk is too small: {sum_} are needed, {free / GB:.1f} GB are free",
            fix="Disks cannot be resized: rent another instance with more disk and destroy this one",
        )
    task.tell(Kind.NOTICE, f"disk: {sum_} needed, {free / GB:.1f} GB free")
    return {"free_gb": round(free / GB, 1), "need_gb": round(need, 1)}
