"""The audit chain: each entry's hash covers the one before, so a changed, missing or inserted entry shows.

The database's own triggers refuse UPDATE, DELETE, REPLACE and an entry that does not follow the last, whatever program
writes. An owner of the file can still drop the triggers: then `verify` finds what was changed, and acts whose entries are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlmodel import Session, col, select

from bruno.records.redaction import redacted
from bruno.records.tables import Act, AuditEntry

GENESIS = "0" * 64
TRIGGERS = ("audit_no_update", "audit_no_delete", "audit_follows")


@dataclass(frozen=True)
class AuditReport:
    """`problem` names the first entry that does not hold; empty when all do."""

    entries: int
    problem: str = ""
    seq: int | None = None

    @property
    def ok(self) -> bool:
        return not self.problem


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def link(entry: AuditEntry) -> str:
    """Hex sha256 over the entry's fields and the previous entry's hash."""
    fields = [entry.previous, entry.seq, entry.at, entry.kind, entry.origin, entry.run_id, entry.plan_id, entry.data]
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def append(
    session: Session,
    kind: str,
    data: Mapping[str, Any],
    *,
    at: datetime,
    origin: str = "",
    run_id: str | None = None,
    plan_id: str | None = None,
) -> int:
    """Add the next entry, redacted, and return its number. `session` holds the write lock, so no other entry can come between."""
    last = session.exec(select(AuditEntry).order_by(col(AuditEntry.seq).desc()).limit(1)).first()
    entry = AuditEntry(
        seq=last.seq + 1 if last else 1,
        at=at.isoformat(),
        kind=kind,
        origin=origin,
        run_id=run_id,
        plan_id=plan_id,
        data=canonical(redacted(dict(data))),
        previous=last.hash if last else GENESIS,
        hash="",
    )
    entry.hash = link(entry)
    session.add(entry)
    session.flush()
    return entry.seq


def verify(session: Session) -> AuditReport:
    """Walk the whole chain, then look for acts whose entries are missing (a cut tail) and for missing triggers."""
    previous, expected = GENESIS, 1
    for entry in session.exec(select(AuditEntry).order_by(col(AuditEntry.seq)).execution_options(yield_per=1000)):
        if entry.seq != expected:
            return AuditReport(expected - 1, f"entry {expected} is missing", expected)
        if entry.previous != previous:
            return AuditReport(expected - 1, f"entry {expected} does not follow entry {expected - 1}", expected)
        if entry.hash != link(entry):
            return AuditReport(expected - 1, f"entry {expected} was changed", expected)
        previous, expected = entry.hash, expected + 1
    count = expected - 1
    for before, after in session.exec(select(Act.audit_before, Act.audit_after)):
        missing = max(before, after or 0)
        if missing > count:
            return AuditReport(count, f"entries after {count} were removed: an act refers to entry {missing}", missing)
    present = set(session.connection().execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars())
    gone = [name for name in TRIGGERS if name not in present]
    return AuditReport(count, f"the database has lost its triggers {', '.join(gone)}" if gone else "")
