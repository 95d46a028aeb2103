"""Shell lines into plans: which machine, and what the guard says of the line. What is shown is what runs, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bruno.errors import InputError
from bruno.fleet.models import Instance, State
from bruno.guard.actions import LONGEST_COMMAND, RunLocal, Target
from bruno.guard.actions import RunCommand as RunCommandAction
from bruno.guard.plan import Fact, Plan, Step, lifetime
from bruno.guard.sanitise import safe_line
from bruno.intents import Clarification, Option, RunCommand
from bruno.operator.resolve import candidates
from bruno.operator.stop import require_known
from bruno.operator.views import Ask, Reply
from bruno.runs.commands import verdict_on

if TYPE_CHECKING:
    from bruno.fleet.models import Listing
    from bruno.guard.command import CommandVerdict
    from bruno.guard.permit import Origin
    from bruno.operator.service import Operator

_MOST_NOTES = 8


def on_instance(operator: Operator, intent: RunCommand, origin: Origin, words: str) -> Reply:
    """A card for the line on exactly one instance, or the question which one is meant.

    Raises:
        InputError: the provider's list is unknown, no such instance, or none that runs.
    """
    listing = operator.world.vast.instances()
    require_known(listing)
    found = candidates(intent.target, listing, operator.world.records.instances())
    if intent.target is None:
        found = [each for each in found if each.state is State.RUNNING]
    if len(found) > 1:
        return Ask(clarification=_which(found, intent))
    if not found:
        raise InputError(_none(intent.target, listing), fix="See: bruno instances")
    plan = _plan_remote(operator, intent, found[0])
    return operator.card(plan, origin=origin, words=words, listing=listing)


def on_this_machine(operator: Operator, line: str, origin: Origin, words: str) -> Reply:
    """A card for the line here. It can only be typed: no intent says it, so nobody else can propose it."""
    verdict = verdict_on(line, operator.world)
    folder = str(Path.cwd())
    action = _made(
        lambda **shared: RunLocal(folder=folder, seconds=operator.settings.guard.command_seconds, **shared), verdict
    )
    plan = _plan("Run a shell line on this machine", action, verdict, operator)
    return operator.card(plan, origin=origin, words=words)


def _plan_remote(operator: Operator, intent: RunCommand, instance: Instance) -> Plan:
    world = operator.world
    verdict = verdict_on(intent.command, world)
    target = Target(instance_id=instance.id, label=instance.label or "", ssh_port=instance.ssh_port)
    seconds = intent.seconds or operator.settings.guard.command_seconds
    action = _made(lambda **shared: RunCommandAction(target=target, seconds=seconds, **shared), verdict)
    record = world.records.instance(instance.id)
    facts = (
        Fact(name="instance_id", value=instance.id, source="provider", checked=True),
        Fact(name="label", value=instance.label, source="provider", checked=True),
        Fact(name="status", value=instance.state.value, source="provider", checked=True),
        Fact(name="ssh_port", value=instance.ssh_port, source="connection"),
        Fact(name="provider_ssh_port", value=instance.ssh_port, source="provider", checked=True),
        Fact(name="rented_by_bruno", value=record is not None, source="records"),
    )
    title = f"Run a shell line on instance {instance.id} ({safe_line(instance.label or 'no label')})"
    return _plan(title, action, verdict, operator, facts=facts, run_id=record.run_id if record else None)


def _made(make: Any, verdict: CommandVerdict) -> RunCommandAction | RunLocal:
    from bruno.guard.command_acts import wipes

    try:
        return make(
            command=verdict.command, level=verdict.verdict, reasons=verdict.reasons[:_MOST_NOTES], wipes=wipes(verdict)
        )
    except ValidationError as error:
        raise InputError(
            f"this cannot be run as a shell line: {error.errors()[0]['msg']}",
            fix=f"At most {LONGEST_COMMAND} characters, and no NUL among them",
        ) from error


def _plan(
    title: str,
    action: RunCommandAction | RunLocal,
    verdict: CommandVerdict,
    operator: Operator,
    *,
    facts: tuple[Fact, ...] = (),
    run_id: str | None = None,
) -> Plan:
    created, expires = lifetime(operator.world.clock(), minutes=5)
    return Plan(
        title=title,
        run_id=run_id,
        steps=(Step(action=action),),
        facts=(*facts, Fact(name="verdict", value=verdict.verdict, source="guard", checked=True)),
        notes=tuple(_notes(verdict)),
        created_at=created,
        expires_at=expires,
    )


def _notes(verdict: CommandVerdict) -> list[str]:
    """Why the guard asks: each piece of the line that it would not let pass, with its rule."""
    pieces = [piece for piece in verdict.pieces if piece.level > 0]
    notes = [
        f"{piece.level.name.replace('_', ' ')}: {piece.command}{f' ({piece.where})' if piece.where else ''}: {piece.reason}"
        for piece in sorted(pieces, key=lambda piece: -piece.level)[:_MOST_NOTES]
    ]
    if len(pieces) > _MOST_NOTES:
        notes.append(f"and {len(pieces) - _MOST_NOTES} more pieces that the guard asks about")
    return [str(safe_line(note, 400)) for note in notes]


def _which(found: list[Instance], intent: RunCommand) -> Clarification:
    options = tuple(
        Option(
            letter=letter,  # type: ignore[arg-type]
            text=f"On {each.id}, {safe_line(each.label or 'no label')}, {safe_line(each.gpu or 'GPU unknown')}",
            consequence="the line runs there and nowhere else, after the guard has looked at it",
            intent=intent.model_copy(update={"target": str(each.id)}),
        )
        for letter, each in zip("ABCDEF", found, strict=False)
    )
    return Clarification(question=f"On which instance? ({len(found)} could be meant)", options=options)


def _none(target: str | None, listing: Listing) -> str:
    listed = ", ".join(f"{each.id} ({safe_line(each.label or 'no label')})" for each in listing.instances) or "none"
    if target is None:
        return f"none of bruno's own instances is running, so there is nothing to run it on; the account has: {listed}"
    return f"no instance {safe_line(target)}; the account has: {listed}"
