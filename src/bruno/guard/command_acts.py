"""Raw shell lines as acts of a plan: their verdict is taken again whenever it matters, and a stricter one stops them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from bruno.errors import Denied
from bruno.guard.actions import RunCommand, RunLocal
from bruno.guard.command import CommandVerdict, check
from bruno.guard.command_rules import CommandRules
from bruno.guard.decision import RuleHit
from bruno.guard.instructions import about
from bruno.guard.permit import Permit, required
from bruno.guard.plan import Plan
from bruno.guard.shapes import Level
from bruno.guard.targets import judge_command_target
from bruno.intents import SetConstraint

WIPES = "/data"
"""Ending of the names of the rules (guardrails/commands) about all that is kept on a machine."""


_AT_PROVIDER = frozenset({"vastai/stops", "vastai/destroys"})
_ID = re.compile(r"(?<![\w.=-])\d{1,12}(?![\w.])")
_ENDS = frozenset({"kill", "pkill", "killall", "skill", "shutdown", "reboot", "poweroff", "halt", "init", "telinit"})
"""Programs that end processes or the machine, whichever of their rules fires."""
_GOES_AGAINST = {
    "no_stop": frozenset(
        {"vastai/stops", "vastai/destroys", "systemctl/stops", "docker/stops", "tmux/kill", "fuser/kill"}
    ),
    "no_destroy": frozenset({"vastai/destroys"}),
    "no_new_instances": frozenset({"vastai/costs"}),
}
"""Standing instruction -> rules for shell lines whose firing goes against it."""


def wipes(verdict: CommandVerdict) -> bool:
    """Whether the command may delete all that is kept on the machine: then its label is part of the word."""
    return any(piece.rule.endswith(WIPES) for piece in verdict.pieces)


def past_bruno(verdict: CommandVerdict) -> tuple[tuple[str, ...] | None, bool]:
    """The instances that the line stops or destroys at the provider by itself, past bruno's own stop and destroy.

    Returns:
        Their ids as written, empty when it stops none, None when they are not known before it runs; and whether it destroys.
    """
    pieces = [piece for piece in verdict.pieces if piece.rule in _AT_PROVIDER]
    ids: dict[str, None] = {}
    for piece in pieces:
        found = _ID.findall(piece.command)
        if not found or "\N{HORIZONTAL ELLIPSIS}" in piece.command or re.search(r"[$`*?{]", piece.command):
            return None, any(each.rule == "vastai/destroys" for each in pieces)
        ids.update(dict.fromkeys(found))
    return tuple(ids), any(piece.rule == "vastai/destroys" for piece in pieces)


def _judge_past_bruno(verdict: CommandVerdict) -> Iterator[RuleHit]:
    """A stop or a destroy that none of bruno's checks has seen: one that is known, and named by the person."""
    ids, destroys = past_bruno(verdict)
    does = "destroy" if destroys else "stop"
    fix = f"Say `{does} {ids[0] if ids else 'NUMBER'}`: bruno looks which machine it is and what would be lost"
    if ids is None:
        yield RuleHit.deny("targets-unknown", f"which instances the line would {does} is not known before it runs", fix)
    elif destroys and len(ids) > 1:
        yield RuleHit.deny("one-destroy", f"the line destroys {len(ids)} instances", "One at a time")
    elif ids:
        reason = (
            f"the line would {does} {', '.join(ids)} past bruno's own checks: nobody looks whether that is the right machine, "
            f"whether its engine runs or whether its model is saved. {fix}"
        )
        yield RuleHit.warn("past-bruno", reason)


def judge_commands(
    plan: Plan, rules: CommandRules | None, git_remote: str, constraints: tuple[SetConstraint, ...] = ()
) -> Iterator[RuleHit]:
    """Hits for each raw shell line of the plan."""
    for step in plan.steps:
        action = step.action
        if isinstance(action, RunCommand):
            yield from judge_command_target(plan, action)
        if isinstance(action, RunCommand | RunLocal):
            verdict = check(action.command, rules, git_remote=git_remote)
            if verdict.level is Level.refuse:
                reasons = "; ".join(verdict.reasons[:3])
                yield RuleHit.deny("never-runs", f"the guard refuses this command, whatever is typed: {reasons}")
            elif stricter(verdict, action):
                yield RuleHit.deny("verdict-changed", _changed(verdict, action), "Ask for the plan again")
            yield from _judge_past_bruno(verdict)
            yield from _instructions(verdict, action, constraints)


def _instructions(
    verdict: CommandVerdict, action: RunCommand | RunLocal, constraints: tuple[SetConstraint, ...]
) -> Iterator[RuleHit]:
    """A denial for each standing instruction that the line goes against, as far as its text tells."""
    for constraint in constraints:
        against = _GOES_AGAINST.get(constraint.rule, frozenset())
        fired = {rule for rule in verdict.rules if rule in against}
        if constraint.rule == "no_stop":
            fired |= {rule for rule in verdict.rules if rule.split("/")[0] in _ENDS}
        if constraint.rule == "no_destroy" and wipes(verdict):
            fired.add(WIPES)
        if fired and (isinstance(action, RunLocal) or about(constraint, action.target)):
            yield RuleHit.deny(
                f"instruction-{constraint.rule.replace('_', '-')}",
                f'you said "{constraint.words}": {"; ".join(verdict.reasons[:2])}',
                "Take the instruction back first, if it no longer holds",
            )


def require_command(
    action: RunCommand | RunLocal, permit: Permit | None, rules: CommandRules, git_remote: str, *, now: datetime
) -> None:
    """The last gate before a shell: raise unless the line may run now.

    Args:
        permit: the confirmation; None is enough only for a line whose verdict, taken again here, is `allow`.

    Raises:
        Denied: no permit where one is needed, a permit that does not cover it, or a verdict that is stricter than the one shown.
    """
    verdict = check(action.command, rules, git_remote=git_remote)
    if verdict.level is Level.refuse:
        raise Denied(f"the guard refuses this command: {'; '.join(verdict.reasons[:3])}")
    if stricter(verdict, action):
        raise Denied(f"{_changed(verdict, action)}; nothing was run", fix="Ask for the plan again")
    if permit is not None:
        permit.require(action, now=now)
    elif required(action) or verdict.level is not Level.allow:
        raise Denied("this command needs a confirmation; nothing was run", fix="Type the word it asks for")


def stricter(verdict: CommandVerdict, action: RunCommand | RunLocal) -> bool:
    """Whether the verdict now asks for more than the one the action was made with."""
    return verdict.level > Level[action.level] or (wipes(verdict) and not action.wipes)


def _changed(verdict: CommandVerdict, action: RunCommand | RunLocal) -> str:
    reasons = f" ({'; '.join(verdict.reasons[:2])})" if verdict.reasons else ""
    return f"the guard's verdict has changed from {action.level} to {verdict.verdict}{reasons}"
