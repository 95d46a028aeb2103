"""The one door to the database: small methods, each one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bruno.intents import SetConstraint
from bruno.records.audit import AuditReport
from bruno.records.tables import (
    Act,
    AuditEntry,
    Confirmation,
    Constraint,
    Discrepancy,
    InstanceRecord,
    Observation,
    Outcome,
    PlanRecord,
    Run,
    RunStep,
)


class Records:
    """Opens (and on first use creates or migrates) the database at `path`. Safe from several threads and processes.

    Rows that methods return are detached copies. Every text is redacted on the way in.
    Raises BrunoError when the file is not a bruno database, is newer than this bruno, or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        raise NotImplementedError

    def close(self) -> None: ...

    # Plans and confirmations
    def save_plan(self, plan_id: str, plan_json: str, *, created_at: datetime, expires_at: datetime) -> None: ...
    def plan(self, plan_id: str) -> PlanRecord:
        """The plan with this id, or the only one that starts with it (12 characters or more). InputError when there is none."""

    def use_permit(
        self, plan_id: str, *, seal: str, origin: str, minted_at: datetime, run_id: str | None = None
    ) -> Confirmation:
        """Use a permit up: one atomic insert. The same seal may come again (the plan's next action); another is Denied."""

    # Runs and steps
    def add_run(self, run: Run, steps: Sequence[str]) -> Run: ...
    def run(self, run_id: str) -> Run:
        """InputError naming the nearest run when there is none."""

    def runs(self, *, open_only: bool = False) -> list[Run]:
        """Newest first. `open_only`: those that are neither finished nor ended."""

    def update_run(self, run_id: str, **changes: Any) -> Run: ...
    def steps(self, run_id: str) -> list[RunStep]: ...
    def start_step(self, run_id: str, name: str, **detail: Any) -> RunStep: ...
    def note_step(self, run_id: str, name: str, **detail: Any) -> RunStep: ...
    def end_step(self, run_id: str, name: str, *, problem: str = "", **detail: Any) -> RunStep: ...

    # Acts
    def begin_act(self, *, plan_id: str, action: Mapping[str, Any], label: str = "", run_id: str | None = None) -> Act:
        """Write down what is about to be done. Denied when this action of this plan was begun before."""

    def end_act(
        self, act_id: int, outcome: Outcome, *, result: Mapping[str, Any] | None = None, problem: str = ""
    ) -> Act: ...
    def act(self, plan_id: str, action: Mapping[str, Any]) -> Act | None: ...
    def acts(self, *, run_id: str | None = None, unsettled: bool = False) -> list[Act]: ...

    # Instances
    def note_instance(self, instance_id: int, **facts: Any) -> InstanceRecord:
        """Insert or update what is known; `status` moves the billing clocks."""

    def instance(self, instance_id: int) -> InstanceRecord | None: ...
    def instances(self) -> list[InstanceRecord]: ...

    # Instructions, observations, discrepancies
    def add_constraint(self, intent: SetConstraint, run_id: str | None = None) -> Constraint: ...
    def lift_constraint(self, constraint_id: int) -> None: ...
    def constraints(self, run_id: str | None = None) -> list[Constraint]:
        """Those in force: for every run, and for `run_id`."""

    def observe(
        self, *, source: str, subject: str, value: Any, run_id: str | None = None, instance_id: int | None = None
    ) -> None: ...
    def observations(self, run_id: str, limit: int = 200) -> list[Observation]: ...
    def add_discrepancy(
        self, run_id: str, *, subject: str, source: str, said: str, other_source: str, against: str
    ) -> bool:
        """Record it; False when this very disagreement is known already."""

    def discrepancies(self, run_id: str, *, open_only: bool = True) -> list[Discrepancy]: ...
    def resolve_discrepancy(self, discrepancy_id: int, resolution: str) -> None: ...

    # Audit
    def audit(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        origin: str = "",
        run_id: str | None = None,
        plan_id: str | None = None,
    ) -> int: ...
    def audit_entries(self, after: int = 0) -> list[AuditEntry]: ...
    def verify_audit(self) -> AuditReport: ...
