"""Raw shell lines as acts of a plan: their verdict is taken again whenever it matters, and a stricter one stops them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from bruno.errors import Denied
from bruno.guard.actions import RunCommand, RunLocal
from bruno.guard.command import CommandVerdict, check
from bruno.guard.command_rules import CommandRules
from bruno.guard.decision import RuleHit
from bruno.guard.permit import Permit, required
from bruno.guard.plan import Plan
from bruno.guard.shapes import Level
from bruno.guard.targets import judge_command_target

WIPES = "/data"
"""Ending of the names of the rules (guardrails/commands) about all that is kept on a machine."""


def wipes(verdict: CommandVerdict) -> bool:
    """Whether the command may delete all that is kept on the machine: then its label is part of the word."""
    return any(piece.rule.endswith(WIPES) for piece in verdict.pieces)


def judge_commands(plan: Plan, rules: CommandRules | None, git_remote: str) -> Iterator[RuleHit]:
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
