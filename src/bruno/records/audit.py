"""The audit chain: each entry's hash covers the one before, so a changed, missing or inserted entry shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AuditReport:
    """`problem` names the first entry that does not hold; empty when all do."""

    entries: int
    problem: str = ""
    seq: int | None = None

    @property
    def ok(self) -> bool:
        return not self.problem
