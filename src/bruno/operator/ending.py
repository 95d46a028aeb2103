"""Which instance a stop or a destroy means: exactly one, all of one run's under one yes, or a lettered question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bruno.errors import InputError
from bruno.guard.permit import Origin
from bruno.guard.sanitise import safe_line
from bruno.intents import Clarification, DestroyInstance, Option, StopInstance
from bruno.operator.resolve import candidates
from bruno.operator.stop import plan_end, plan_stop_all, require_known
from bruno.operator.views import Answer, Ask, Reply

if TYPE_CHECKING:
    from bruno.fleet.models import Instance, Listing
    from bruno.operator.service import Operator

_LETTERS = "ABCDEF"


def end(operator: Operator, intent: StopInstance | DestroyInstance, origin: Origin, words: str) -> Reply:
    """The card that stops or destroys what is meant, or the question which it is.

    Raises:
        InputError: the list is unknown, or nothing is meant.
    """
    destroy = isinstance(intent, DestroyInstance)
    listing = operator.world.vast.instances()
    require_known(listing)
    whole = _group(operator, intent.target, listing)
    if whole and not destroy:
        return _stop_group(operator, *whole, origin=origin, words=words, listing=listing)
    found = whole[1] if whole else candidates(intent.target, listing, operator.world.records.instances())
    if intent.target is None and not destroy:
        found = [each for each in found if not each.stopped] or found
    if len(found) > 1:
        return Ask(clarification=_which(operator, found, destroy=destroy))
    if not found:
        raise InputError(_none_found(intent.target, listing.instances), fix="See: bruno instances")
    if found[0].stopped and not destroy:
        return _stopped_already(found[0])
    plan = plan_end(found[0], operator.world, destroy=destroy)
    return operator.card(plan, origin=origin, words=words, listing=listing)


def _group(operator: Operator, target: str | None, listing: Listing) -> tuple[str, list[Instance]] | None:
    """The run over several instances that `target` names, with those of its instances that are there; None when it names none."""
    records = operator.world.records
    rows = records.group(target) if target else []
    if not rows:
        return None
    ours = {record.instance_id: record.label for record in records.instances()}
    numbers = {row.instance_id for row in rows}
    there = [each for each in listing.instances if each.id in numbers and each.label == ours.get(each.id)]
    return (str(target), there)


def _stop_group(
    operator: Operator, run_id: str, there: list[Instance], *, origin: Origin, words: str, listing: Listing
) -> Reply:
    if not there:
        raise InputError(f"none of the instances of run {run_id} is there any more", fix="See: bruno instances")
    running = [each for each in there if not each.stopped]
    if not running:
        per_day = [each.stopped_per_day for each in there]
        cost = "an unknown amount" if None in per_day else f"${sum(each or 0 for each in per_day):.2f}"
        return Answer(
            text=f"the instances of run {run_id} are stopped already; their disks cost {cost} per day together"
        )
    if len(running) == 1:
        plan = plan_end(running[0], operator.world, destroy=False)
    else:
        plan = plan_stop_all(run_id, running, operator.world)
    return operator.card(plan, origin=origin, words=words, listing=listing)


def _which(operator: Operator, found: list[Instance], *, destroy: bool) -> Clarification:
    """Each of them as an option, after all of a run's together where they are one run's."""
    verb = "Destroy" if destroy else "Stop"
    make = DestroyInstance if destroy else StopInstance
    ends = "deletes it and its disk for ever" if destroy else "kills every process on it; its disk stays"
    options: list[tuple[str, str, StopInstance | DestroyInstance]] = []
    for run_id, number in [] if destroy else _whole_groups(operator, found):
        what = f"kills every process on all {number}; their disks stay; one yes for all of them"
        options.append((f"Stop the {number} instances of run {run_id}", what, StopInstance(target=run_id)))
    for each in found:
        about = f"{_named(each)}, {safe_line(each.gpu or 'GPU unknown')}, {each.state.value}"
        options.append((f"{verb} {each.id}, {about}", ends, make(target=str(each.id))))
    more = f"; for another than these say its id: {verb.lower()} ID" if len(options) > len(_LETTERS) else ""
    return Clarification(
        question=f"Which instance? ({len(found)} could be meant{more})",
        options=tuple(
            Option(letter=letter, text=text, consequence=consequence, intent=intent)  # type: ignore[arg-type]
            for letter, (text, consequence, intent) in zip(_LETTERS, options, strict=False)
        ),
    )


def _whole_groups(operator: Operator, found: list[Instance]) -> list[tuple[str, int]]:
    """Runs of which several instances are among these, with how many."""
    records = operator.world.records
    rented_for = {row.instance_id: row.group_id for row in records.runs() if row.group_id is not None}
    named = [group for each in found if (group := rented_for.get(each.id)) is not None]
    return [(group, named.count(group)) for group in dict.fromkeys(named) if named.count(group) > 1]


def _stopped_already(instance: Instance) -> Answer:
    per_day = instance.stopped_per_day
    cost = f"${per_day:.2f} per day" if per_day is not None else "an unknown amount per day"
    named = safe_line(instance.label or "")
    return Answer(text=f"instance {instance.id} ({named}) is stopped already; its disk costs {cost}")


def _named(instance: Instance) -> str:
    return f"label {safe_line(instance.label)}" if instance.label else "no label"


def _none_found(target: str | None, instances: tuple[Instance, ...]) -> str:
    listed = ", ".join(f"{each.id} ({_named(each)})" for each in instances) or "none"
    if target is None:
        return f'no instance of bruno\'s own is there for "it"; the account has: {listed}'
    return f"no instance {safe_line(target)}; the account has: {listed}"
