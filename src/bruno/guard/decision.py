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

    @classmethod
    def deny(cls, rule: str, reason: str, fix: str = "") -> RuleHit:
        """The plan may not be carried out, whatever is typed."""
        return cls(rule=rule, verdict=Verdict.DENY, reason=reason, fix=fix)

    @classmethod
    def warn(cls, rule: str, reason: str) -> RuleHit:
        """Something to know before answering; it neither asks nor denies by itself."""
        return cls(rule=rule, verdict=Verdict.ALLOW, reason=reason)


class Decision(BaseModel):
    """The strictest verdict of the rules that fired, and the exact word that confirms it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    verdict: Verdict
    hits: tuple[RuleHit, ...] = ()
    word: str = "yes"
    """`yes`, or `yes <label>` for what cannot be undone. Compared exactly after stripping blanks at the ends."""
    plan_id: str = ""
    """The plan it was made for. `mint` refuses a decision on another plan."""

    @property
    def warnings(self) -> tuple[RuleHit, ...]:
        """What the person should know before answering: hits that neither confirm nor deny by themselves."""
        return tuple(hit for hit in self.hits if hit.verdict is Verdict.ALLOW)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is: the hits that carry it, each with what to do."""
        deciding = (hit for hit in self.hits if hit.verdict is self.verdict)
        return tuple(f"{hit.reason}. {hit.fix}" if hit.fix else hit.reason for hit in deciding)
