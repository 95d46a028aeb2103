"""What the guard answers to a plan."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Verdict(StrEnum):
    """Strictest last. `clarify` is asked before a plan exists; a plan gets allow, confirm or deny."""

    ALLOW = "allow"
    CONFIRM = "confirm"
    CLARIFY = "clarify"
    DENY = "deny"


class RuleHit(BaseModel):
    """A rule that fired, in words a person can act on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rule: str
    verdict: Verdict
    reason: str
    fix: str = ""


class Decision(BaseModel):
    """The strictest verdict of the rules that fired, and the exact word that confirms it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verdict: Verdict
    hits: tuple[RuleHit, ...] = ()
    word: str = "yes"
    """`yes`, or `yes <label>` for what cannot be undone. Compared exactly after stripping blanks at the ends."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(hit.reason for hit in self.hits)
