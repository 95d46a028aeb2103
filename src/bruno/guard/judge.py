"""The guard's verdict on a plan. Pure: facts come in with the plan and its context, a decision goes out.

Deny wins over confirm, confirm over allow. Unknown is never fine: a price, a list or a target that could not be read denies what
would rest on it. What a person should know before the answer (no model saved, the process still runs) comes as a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from bruno.guard.actions import CreateInstance, DestroyInstance, Risk, RunCommand, RunLocal, RunPlaybook, StartInstance
from bruno.guard.budget import judge_costs
from bruno.guard.decision import Decision, RuleHit, Verdict
from bruno.guard.holds import Hold, judge_holds
from bruno.guard.instructions import judge_instructions
from bruno.guard.plan import Plan
from bruno.guard.rules import Rules, shipped
from bruno.guard.targets import judge_targets
from bruno.intents import SetConstraint

if TYPE_CHECKING:
    from bruno.guard.command_rules import CommandRules

_TYPABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


@dataclass(frozen=True)
class Context:
    """What the guard must know beside the plan. None is unknown, never zero."""

    now: datetime
    rules: Rules = field(default_factory=shipped)
    live_instances: int | None = None
    """How many instances run or are about to, by the provider's own list."""
    constraints: tuple[SetConstraint, ...] = ()
    """The person's standing instructions."""
    holds: tuple[Hold, ...] = ()
    """Concerns that were raised twice and are not resolved."""
    credit: float | None = None
    """US dollars left on the account."""
    commands: CommandRules | None = None
    """Rules for raw shell lines; None: the shipped ones."""
    git_remote: str = ""
    """The one remote that `git push` may go to; "" leaves every push to the rules."""


def judge(plan: Plan, context: Context) -> Decision:
    """Apply every rule to `plan`; the strictest verdict stands. Never raises for what a plan says."""
    hits = tuple(_hits(plan, context))
    denied = any(hit.verdict is Verdict.DENY for hit in hits)
    if denied:
        return Decision(verdict=Verdict.DENY, hits=hits, plan_id=plan.plan_id)
    if plan.risk > Risk.READ:
        word = confirm_word(plan, hits, _named(plan, context))
        return Decision(verdict=Verdict.CONFIRM, hits=hits, word=word, plan_id=plan.plan_id)
    return Decision(verdict=Verdict.ALLOW, hits=hits, plan_id=plan.plan_id)


def confirm_word(plan: Plan, hits: tuple[RuleHit, ...] = (), ids: tuple[str, ...] = ()) -> str:
    """`yes`; or `yes <label>` when a step cannot be undone or a rule asks for the label; or `yes <ids>` when a shell line of the
    plan stops or destroys these instances by itself.

    A label that cannot be typed (blanks, other scripts) gives way to the instance's id.
    """
    named = plan.risk is Risk.IRREVERSIBLE or any(hit.rule == "name-the-target" for hit in hits)
    targets = [step.action.target for step in plan.steps if getattr(step.action, "target", None)]  # pyright: ignore
    if not named or not targets:
        return " ".join(("yes", *ids))
    if len(targets) > 1 and plan.run_id and _TYPABLE.fullmatch(plan.run_id):
        return f"yes {plan.run_id}"  # all of them are that run's
    target = targets[-1]
    return f"yes {target.label if _TYPABLE.fullmatch(target.label) else target.instance_id}"


def _named(plan: Plan, context: Context) -> tuple[str, ...]:
    """Instances that shell lines of the plan stop or destroy at the provider."""
    lines = [step.action for step in plan.steps if isinstance(step.action, RunCommand | RunLocal)]
    if not lines:
        return ()
    from bruno.guard.command import check
    from bruno.guard.command_acts import past_bruno

    found = [past_bruno(check(line.command, context.commands, git_remote=context.git_remote))[0] for line in lines]
    return tuple(dict.fromkeys(one for ids in found for one in ids or ()))


def _hits(plan: Plan, context: Context) -> Iterator[RuleHit]:
    yield from _shape(plan, context)
    yield from judge_costs(plan, context.rules, context.live_instances, context.credit)
    yield from judge_targets(plan)
    yield from _commands(plan, context)
    yield from judge_instructions(plan, context.constraints)
    yield from judge_holds(plan, context.holds)
    for step in plan.steps:
        action = step.action
        if action.risk > Risk.READ:
            reach = action.blast_radius()
            undo = f"to undo: {action.inverse}" if action.inverse else "this cannot be undone"
            reason = f"{action.describe()}; {reach + '; ' if reach else ''}{undo}"
            yield RuleHit(rule=f"{action.risk.name.lower()}-needs-yes", verdict=Verdict.CONFIRM, reason=reason)


def _commands(plan: Plan, context: Context) -> Iterator[RuleHit]:
    if any(step.action.kind in ("run_command", "run_local") for step in plan.steps):
        from bruno.guard.command_acts import judge_commands  # the parser is loaded when there is something to parse

        yield from judge_commands(plan, context.commands, context.git_remote, context.constraints)


def _shape(plan: Plan, context: Context) -> Iterator[RuleHit]:
    """What is wrong with the plan itself, whatever it does."""
    if not plan.steps:
        yield RuleHit.deny("empty-plan", "the plan has no step")
    if plan.expired(context.now):
        yield RuleHit.deny("plan-expired", "the plan has expired", "Ask again: prices and machines change")
    for kinds, rule, what in (
        ((DestroyInstance,), "one-destroy", "destroys"),
        ((CreateInstance, StartInstance), "one-rent", "rents or starts"),
    ):
        count = sum(isinstance(step.action, kinds) for step in plan.steps)
        if count > 1 and not (rule == "one-rent" and _for_workers(plan)):
            yield RuleHit.deny(
                rule, f"the plan {what} {count} instances", "Take them one at a time, each with its own yes"
            )
    values: dict[tuple[str, str], object] = {}
    for fact in plan.facts:
        key = (fact.name, fact.about)
        if key in values and values[key] != fact.value:
            yield RuleHit.deny(
                "facts-disagree", f"two sources disagree about {fact.name}: {values[key]} and {fact.value}"
            )
        values[key] = fact.value


def _for_workers(plan: Plan) -> bool:
    """Whether what the plan rents is exactly what its one playbook names as its workers' instances, each once."""
    labels = [step.action.label for step in plan.steps if isinstance(step.action, CreateInstance)]
    books = [step.action for step in plan.steps if isinstance(step.action, RunPlaybook)]
    starts = any(isinstance(step.action, StartInstance) for step in plan.steps)
    return not starts and len(books) == 1 and books[0].workers == tuple(labels) and len(set(labels)) == len(labels)
