"""Rules about which machine is meant: a stop or a destroy reaches exactly one instance, or none. Pure.

Id, label and SSH port of the chosen row must agree with the provider, and with the label file that the instance itself
keeps; a plan that stops several holds each against its own facts. Facts that are missing count as not satisfied. There is one
way past an unread label file: the host was tried and could not be reached (`host_unreachable`), since a frozen machine must
not bill for ever; then the label has to be typed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bruno.guard.actions import DestroyInstance, Risk, RunCommand, StartInstance, StopInstance
from bruno.guard.decision import RuleHit, Verdict
from bruno.guard.plan import Plan

_RUNNING = frozenset({"running"})
_QUIET = frozenset({"stopped", "exited", "stopping", "loading", "created", "scheduling", "offline"})
_Aimed = StopInstance | DestroyInstance | StartInstance | RunCommand
"""Actions on an instance that is there."""


def judge_targets(plan: Plan) -> Iterator[RuleHit]:
    """Hits for each step that acts on an existing instance."""
    for step in plan.steps:
        action = step.action
        if isinstance(action, StopInstance | DestroyInstance | StartInstance):
            yield from _named(plan, action, _identity(plan, action))
        if isinstance(action, StopInstance | DestroyInstance):
            yield from _named(plan, action, (*_host(plan, action), *_losses(plan, action)))


def _named(plan: Plan, action: _Aimed, hits: Iterable[RuleHit]) -> Iterator[RuleHit]:
    """The hits, each saying which instance it is about where the plan has several."""
    for hit in hits:
        said = f"instance {action.target.instance_id}"
        several = len(_aimed(plan)) > 1 and said not in hit.reason
        yield hit.model_copy(update={"reason": f"{said}: {hit.reason}"}) if several else hit


def judge_command_target(plan: Plan, action: RunCommand) -> Iterator[RuleHit]:
    """Hits for a shell line: it reaches exactly the instance that was shown, which runs, or none.

    The host key and the label file are read when the link is opened, before anything is sent over it.
    """
    yield from _identity(plan, action)
    known, status = _fact(plan, "status", action)
    if not known or str(status) not in _RUNNING:
        said = status if known else "unknown"
        reason = f"the status of instance {action.target.instance_id} is {said}: nothing can be run on it"
        yield RuleHit.deny("not-running", reason, "Wait until it runs, or start it first")
        return
    yield from _ports(plan, action)


def _identity(plan: Plan, action: _Aimed) -> Iterator[RuleHit]:
    target = action.target
    for name, wanted in (("instance_id", target.instance_id), ("label", target.label)):
        known, value = _fact(plan, name, action)
        if not known:
            yield RuleHit.deny(
                "target-unknown", f"the provider's {name.replace('_', ' ')} of instance {target.instance_id} is unknown"
            )
        elif value != wanted:
            yield RuleHit.deny(
                "wrong-target", f"{name.replace('_', ' ')} disagrees: the row says {wanted}, the provider says {value}"
            )


def _host(plan: Plan, action: StopInstance | DestroyInstance) -> Iterator[RuleHit]:
    target = action.target
    known, status = _fact(plan, "status", action)
    if not known:
        yield RuleHit.deny(
            "status-unknown", f"the status of instance {target.instance_id} is unknown", "Refresh the list first"
        )
        return
    running = str(status) in _RUNNING or str(status) not in _QUIET
    if running or target.ssh_port is not None:
        yield from _ports(plan, action)
    has_label, label_file = _fact(plan, "label_file", action)
    if has_label and str(label_file) not in _own_labels(action):
        yield RuleHit.deny(
            "wrong-host",
            f"the host calls itself {label_file}, not C.{target.instance_id}",
            "This is another machine: look again",
        )
    elif not has_label and running:
        yield from _unread_label(plan, action)
    elif not has_label:
        yield RuleHit.warn(
            "not-running", f"instance {target.instance_id} is {status}: its own label file cannot be read"
        )


def _ports(plan: Plan, action: StopInstance | DestroyInstance | RunCommand) -> Iterator[RuleHit]:
    target = action.target
    _, ours = _fact(plan, "ssh_port", action)
    _, theirs = _fact(plan, "provider_ssh_port", action)
    ports = {"the row": target.ssh_port, "the connection": ours, "the provider": theirs}
    unknown = [who for who, port in ports.items() if port is None]
    if unknown:
        yield RuleHit.deny(
            "port-unknown",
            f"the SSH port of instance {target.instance_id} is unknown to {', '.join(unknown)}",
            "Refresh the list first",
        )
    elif len(set(ports.values())) > 1:
        said = ", ".join(f"{who} says {port}" for who, port in ports.items())
        yield RuleHit.deny(
            "wrong-target",
            f"the SSH port of instance {target.instance_id} disagrees: {said}",
            "Refresh the list and look again",
        )


def _unread_label(plan: Plan, action: StopInstance | DestroyInstance) -> Iterator[RuleHit]:
    instance = action.target.instance_id
    _, unreachable = _fact(plan, "host_unreachable", action)
    if unreachable is not True:
        yield RuleHit.deny(
            "host-unknown", f"the label file of instance {instance} was not read", "Let bruno connect to it first"
        )
        return
    reason = f"instance {instance} cannot be reached over SSH: which machine it is rests on the provider's word alone"
    yield RuleHit.warn("host-unreachable", reason)
    yield RuleHit(rule="name-the-target", verdict=Verdict.CONFIRM, reason="its label has to be typed with the yes")


def _losses(plan: Plan, action: StopInstance | DestroyInstance) -> Iterator[RuleHit]:
    """What would be lost. A stop keeps the disk, so a saved model survives it; a destroy keeps nothing."""
    destroying = action.risk is Risk.IRREVERSIBLE
    known, saved = _fact(plan, "model_saved", action)
    if not known:
        yield RuleHit.warn("saved-unknown", "whether a model has been saved is unknown")
    elif saved is not True:
        yield RuleHit.warn(
            "no-model-saved",
            "no model has been saved on it" + (", and nothing on its disk will be left" if destroying else ""),
        )
    known, running = _fact(plan, "process_running", action)
    _, trial = _fact(plan, "trial", action)
    _, trials = _fact(plan, "trials", action)
    at = f" at trial {trial} of {trials}" if trial is not None and trials is not None else ""
    if not known:
        yield RuleHit.warn("process-unknown", "whether the engine still runs is unknown")
    elif running is not False:
        yield RuleHit.warn("process-running", f"the engine is still running{at}; it will be killed")


def _aimed(plan: Plan) -> list[_Aimed]:
    return [step.action for step in plan.steps if isinstance(step.action, _Aimed)]


def _own_labels(action: StopInstance | DestroyInstance) -> tuple[str, str]:
    return f"C.{action.target.instance_id}", str(action.target.instance_id)


def _fact(plan: Plan, name: str, action: _Aimed) -> tuple[bool, object]:
    """What the plan knows of this action's own instance: where it acts on several, each has its own facts."""
    fact = plan.fact(name, str(action.target.instance_id) if len(_aimed(plan)) > 1 else "")
    return (fact is not None and fact.value is not None, None if fact is None else fact.value)
