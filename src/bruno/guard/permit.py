"""Permits: the proof that a person at a keyboard typed the word for exactly this plan.

`mint` is called in two places only: the console's confirm box and the command line's prompt (an import contract and a test
hold that). A permit is sealed with a secret of this process, covers the actions of one plan, is used once and expires.
Using it up is recorded in the database by the operator, so that two consoles cannot both act on one plan.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from bruno.errors import Denied, NotConfirmed
from bruno.guard.actions import Action, CreateInstance, Risk
from bruno.guard.decision import Decision, Verdict
from bruno.guard.plan import Plan
from bruno.guard.sanitise import safe_line

_SECRET = secrets.token_bytes(32)
KEYBOARD_SECONDS = 60.0
RENTAL_SECONDS = 20.0
"""Longer for each further rental of a plan: the provider takes one in 4.5 s, and one whose reply was lost is looked for."""
_CLOCK_SLACK = timedelta(seconds=5)


class Origin(StrEnum):
    """Where a request came from. Only a keyboard, or a script that repeats a printed plan id, can confirm."""

    KEYBOARD = "keyboard"
    COMMAND_LINE = "command line"
    SCRIPT = "script"
    ASSISTANT = "assistant"
    PLAYBOOK = "playbook"


@dataclass(frozen=True)
class Permit:
    """Do not construct: `mint` does. A permit without a true seal is refused everywhere."""

    plan: Plan
    origin: Origin
    minted_at: datetime
    expires_at: datetime
    seal: str = field(repr=False)

    @property
    def plan_id(self) -> str:
        return self.plan.plan_id

    def require(self, action: Action, *, now: datetime) -> None:
        """Raise Denied unless this permit is genuine, unexpired and its plan contains exactly `action`."""
        if not hmac.compare_digest(self.seal, _seal(self.plan_id, self.origin, self.minted_at, self.expires_at)):
            raise Denied("this permit was not made by a confirmation", fix="Ask for the plan again and confirm it")
        if not self.minted_at - _CLOCK_SLACK <= now < self.expires_at:
            raise Denied("the confirmation has expired", fix="Ask for the plan again and confirm it")
        if action not in tuple(step.action for step in self.plan.steps):
            raise Denied(f"the confirmed plan does not contain: {action.describe()}", fix="Ask for a plan that does")


def mint(
    plan: Plan, decision: Decision, typed: str, *, origin: Origin, now: datetime, seconds: float = KEYBOARD_SECONDS
) -> Permit:
    """Turn what the person typed into a permit.

    Args:
        plan: the plan that was shown.
        decision: the guard's decision on exactly this plan.
        typed: the person's answer, as typed.
        origin: KEYBOARD, COMMAND_LINE, or SCRIPT (then `typed` is the whole plan id).
        now: current time; `seconds`: how long the permit lives once minted, one rental's time.

    Raises:
        NotConfirmed: the word is not the one asked for, or the plan has expired.
        Denied: the guard did not ask for confirmation, decided on another plan, or the origin cannot confirm.
    """
    if decision.plan_id != plan.plan_id:
        raise Denied("the guard's decision was made for another plan", fix="Ask for the plan again")
    if decision.verdict is not Verdict.CONFIRM:
        raise Denied(f"the guard's verdict is {decision.verdict.value}, which no word can confirm")
    if origin in (Origin.ASSISTANT, Origin.PLAYBOOK):
        raise Denied(f"the {origin.value} cannot confirm anything")
    if plan.expired(now):
        raise NotConfirmed("the plan has expired, nothing was done", fix="Ask again to see today's price")
    expected = plan.plan_id if origin is Origin.SCRIPT else decision.word
    if typed.strip() != expected:
        word = "the whole id of this plan" if origin is Origin.SCRIPT else repr(decision.word)
        given = f"{str(safe_line(typed, 40))!r} is not {word}" if typed.strip() else f"{word} was not typed"
        raise NotConfirmed(f"not confirmed ({given}), nothing was done")
    rentals = sum(isinstance(step.action, CreateInstance) for step in plan.steps)
    expires_at = now + timedelta(seconds=seconds + RENTAL_SECONDS * max(0, rentals - 1))
    return Permit(plan, origin, now, expires_at, _seal(plan.plan_id, origin, now, expires_at))


def required(action: Action) -> bool:
    """Whether this action needs a permit: everything but reading does."""
    return action.risk > Risk.READ


def _seal(plan_id: str, origin: Origin, minted_at: datetime, expires_at: datetime) -> str:
    text = "|".join((plan_id, origin.value, minted_at.isoformat(), expires_at.isoformat()))
    return hmac.new(_SECRET, text.encode(), hashlib.sha256).hexdigest()
