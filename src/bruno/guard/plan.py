"""A plan: what is going to be done, the facts it rests on, and an identity that changes when any of it does.

`plan_id` is the sha256 of the plan's canonical JSON (calls, facts, targets, cost, nonce, expiry). What the person confirms
is drawn from this object alone, and the executor hashes it again before the first act.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from bruno.guard.actions import Action, Risk


class Fact(BaseModel):
    """Something the plan rests on. `value` None means unknown, which never counts as fine."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    value: str | int | float | bool | None
    source: str
    """Who said so: provider, host, records, config, arithmetic."""
    checked: bool = False
    """True when it must hold again at the moment of acting."""
    about: str = ""
    """Which of the plan's instances it is about (label or id) where the plan has several; "" is the plan itself."""


class Cost(BaseModel):
    """Money, in US dollars. None is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    per_hour: float | None = None
    hours: float | None = None
    total: float | None = None
    stopped_per_day: float | None = None
    """What the disk costs per day once the instance is stopped."""


class Step(BaseModel):
    """One act of the plan, as shown and as executed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    action: Action
    why: str = ""


class Plan(BaseModel):
    """Ordered steps with their facts and cost. Frozen: a changed plan is another plan, with another id."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    title: str
    run_id: str | None = None
    steps: tuple[Step, ...]
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
    """Lines of arithmetic and warnings, shown on the card."""
    cost: Cost = Cost()
    created_at: datetime
    expires_at: datetime
    nonce: str = Field(default_factory=lambda: secrets.token_hex(8))

    @property
    def plan_id(self) -> str:
        """Hex sha256 of the canonical JSON. The first 12 characters are shown; the whole is compared.

        Computed on every use: pydantic's `model_copy` would carry a cached id over to a changed plan.
        """
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def risk(self) -> Risk:
        return max((step.action.risk for step in self.steps), default=Risk.READ)

    def fact(self, name: str, about: str = "") -> Fact | None:
        """The fact of this name about the plan itself, or about one of its instances; never another's."""
        return next((fact for fact in self.facts if fact.name == name and fact.about == about), None)

    def expired(self, now: datetime) -> bool:
        return now >= self.expires_at


def lifetime(now: datetime | None = None, minutes: float = 10) -> tuple[datetime, datetime]:
    """`created_at` and `expires_at` for a plan made now."""
    start = now or datetime.now(UTC)
    return start, start + timedelta(minutes=minutes)
