"""Records: what bruno means to do, is doing and has done, in one SQLite file that outlives the process.

Everything that spends, stops or deletes is written here before it happens and again when its outcome is known, so a killed
console resumes from these rows and never rents twice. This room touches one file, the database; it imports only `settings`,
`intents` and `errors`, and knows nothing of machines.

    from bruno.records import Records
    records = Records(paths().database, clock)

`Records` and the tables load SQLModel (about a second), so they are fetched on first use: `import bruno.records` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.records.audit import AuditReport
    from bruno.records.repository import Records
    from bruno.records.tables import (
        Act,
        AuditEntry,
        Concern,
        Confirmation,
        Constraint,
        Discrepancy,
        InstanceRecord,
        Observation,
        PlanRecord,
        Run,
        RunStep,
    )

__all__ = [
    "Act",
    "AuditEntry",
    "AuditReport",
    "Concern",
    "Confirmation",
    "Constraint",
    "Discrepancy",
    "InstanceRecord",
    "Observation",
    "PlanRecord",
    "Records",
    "Run",
    "RunStep",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bruno.records import audit, repository, tables

    home = {"Records": repository, "AuditReport": audit}.get(name, tables)
    return getattr(home, name)
