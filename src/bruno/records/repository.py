"""`Records`: the one door to the database. Small methods, each one transaction; rows come back as detached copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from bruno.errors import InputError
from bruno.intents import SetConstraint
from bruno.records import audit
from bruno.records.concerns import ConcernRows
from bruno.records.database import Database, RecordsError
from bruno.records.redaction import redacted_row
from bruno.records.tables import (
    AuditEntry,
    Constraint,
    Discrepancy,
    InstanceRecord,
    Observation,
    Run,
    RunState,
    RunStep,
    StepState,
)

OPEN = (RunState.CONFIRMED.value, RunState.ACTIVE.value, RunState.FAILED.value)


class Records(ConcernRows):
    """Opens (creates, migrates) the database at `path`. Safe from several threads and processes.

    Every text and every JSON value is redacted on its way in. `clock` gives aware UTC times.

    Raises:
        RecordsError: not a bruno database, newer than this bruno, damaged, locked for long, or not writable.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._db = Database(path)
        self._clock = clock

    def close(self) -> None:
        self._db.close()

    # --- runs and their steps ---

    def add_run(self, run: Run, steps: Sequence[str]) -> Run:
        """Write a new run with its steps, all pending. InputError when its id or its label is taken."""
        self.add_runs([(run, steps)])
        return run

    def add_runs(self, runs: Sequence[tuple[Run, Sequence[str]]]) -> None:
        """Write the rows of one run over several instances, all of them or none. As `add_run`."""
        with self._db.write() as session:
            for run, steps in runs:
                self._add_run(session, run, steps)

    def _add_run(self, session: Session, run: Run, steps: Sequence[str]) -> None:
        taken = session.exec(select(Run).where((Run.run_id == run.run_id) | (Run.label == run.label))).first()
        if taken is not None:
            raise InputError(f"there is a run named {taken.run_id} (label {taken.label}) already")
        session.add(redacted_row(run))
        session.flush()
        session.add_all(RunStep(run_id=run.run_id, position=n, name=name) for n, name in enumerate(steps))
        audit.append(session, "run", {"title": run.title}, at=self._clock(), run_id=run.run_id, plan_id=run.plan_id)

    def run(self, run_id: str) -> Run:
        """The run with this id. InputError naming the nearest one when there is none."""
        with self._db.read() as session:
            return self._run(session, run_id)

    def runs(self, *, open_only: bool = False) -> list[Run]:
        """All runs, newest first. `open_only`: those that are neither finished nor ended."""
        query = select(Run).order_by(col(Run.created_at).desc(), col(Run.run_id))
        with self._db.read() as session:
            return list(session.exec(query.where(col(Run.state).in_(OPEN)) if open_only else query))

    def group(self, group_id: str) -> list[Run]:
        """The rows of a run over several instances, the first one's first, the others by label."""
        query = select(Run).where(Run.group_id == group_id)
        with self._db.read() as session:
            return sorted(session.exec(query), key=lambda run: (run.run_id != group_id, len(run.label), run.label))

    def update_run(self, run_id: str, **changes: Any) -> Run:
        """Change fields of a run (`state`, `problem`, `instance_id`, ...)."""
        with self._db.write() as session:
            return self._set(session, self._run(session, run_id), {**changes, "updated_at": self._clock()})

    def steps(self, run_id: str) -> list[RunStep]:
        """A run's steps in order."""
        with self._db.read() as session:
            return list(session.exec(select(RunStep).where(RunStep.run_id == run_id).order_by(col(RunStep.position))))

    def start_step(self, run_id: str, name: str) -> RunStep:
        """The step begins (again): one more attempt, its detail kept from earlier attempts."""
        with self._db.write() as session:
            step = self._step(session, run_id, name)
            return self._set(
                session,
                step,
                {
                    "state": StepState.STARTED.value,
                    "attempts": step.attempts + 1,
                    "problem": "",
                    "started_at": step.started_at or self._clock(),
                    "ended_at": None,
                },
            )

    def note_step(self, run_id: str, name: str, **detail: Any) -> RunStep:
        """Add to a step's detail what a restart must know, before acting on it."""
        with self._db.write() as session:
            step = self._step(session, run_id, name)
            return self._set(session, step, {"detail": {**step.detail, **detail}})

    def end_step(self, run_id: str, name: str, *, problem: str = "", **detail: Any) -> RunStep:
        """The step is done, or failed when `problem` says why."""
        with self._db.write() as session:
            step = self._step(session, run_id, name)
            state = StepState.FAILED if problem else StepState.DONE
            changes = {"state": state.value, "problem": problem, "ended_at": self._clock()}
            return self._set(session, step, {**changes, "detail": {**step.detail, **detail}})

    def reopen_step(self, run_id: str, name: str, *, detail: Mapping[str, Any] | None = None) -> RunStep:
        """Put a step back to pending, so that it is done again. `detail` replaces what it remembered."""
        with self._db.write() as session:
            step = self._step(session, run_id, name)
            changes = {"state": StepState.PENDING.value, "problem": "", "started_at": None, "ended_at": None}
            return self._set(session, step, {**changes, "detail": dict(detail or {})})

    # --- instances ---

    def note_instance(
        self, instance_id: int, *, running: bool | None = None, gone: bool = False, **facts: Any
    ) -> InstanceRecord:
        """Insert or update what is known of an instance.

        Args:
            running: whether its GPU is billed now; None (unknown) leaves the billing clocks as they are. A stint starts at the
                reading before the one that found it running and ends at the one that found it over: never too short.
            gone: the provider says it no longer exists.
            facts: columns of InstanceRecord; a value of None never overwrites what was known.
        """
        now = self._clock()
        with self._db.write() as session:
            row = session.get(InstanceRecord, instance_id) or InstanceRecord(instance_id=instance_id, label="")
            changes = {name: value for name, value in facts.items() if value is not None}
            if running and row.running_since is None:
                changes |= {
                    "running_since": row.seen_at or changes.get("rented_at") or row.rented_at or now,
                    "stopped_at": None,
                }
            if (gone or running is False) and row.running_since is not None:
                changes["running_seconds"] = row.running_seconds + (now - row.running_since).total_seconds()
                changes |= {"running_since": None, "stopped_at": now}
            if gone:
                changes["gone_at"] = row.gone_at or now
            return self._set(session, row, {**changes, "seen_at": now})

    def instance(self, instance_id: int) -> InstanceRecord | None:
        with self._db.read() as session:
            return session.get(InstanceRecord, instance_id)

    def instances(self) -> list[InstanceRecord]:
        """All that bruno ever rented or acted on, gone ones included (`gone_at`)."""
        with self._db.read() as session:
            return list(session.exec(select(InstanceRecord).order_by(col(InstanceRecord.instance_id))))

    # --- instructions, observations, discrepancies ---

    def add_constraint(self, intent: SetConstraint, run_id: str | None = None) -> Constraint:
        """A standing instruction, in force from now on for `run_id`, or for every run."""
        row = Constraint(run_id=run_id, rule=intent.rule, value=intent.value, words=intent.words, set_at=self._clock())
        with self._db.write() as session:
            session.add(redacted_row(row))
            audit.append(session, "constraint", intent.model_dump(), at=row.set_at, run_id=run_id)
        return row

    def lift_constraint(self, constraint_id: int) -> None:
        with self._db.write() as session:
            row = session.get(Constraint, constraint_id)
            if row is None:
                raise InputError(f"there is no instruction {constraint_id}")
            self._set(session, row, {"lifted_at": row.lifted_at or self._clock()})
            audit.append(
                session,
                "constraint lifted",
                {"rule": row.rule, "words": row.words},
                at=self._clock(),
                run_id=row.run_id,
            )

    def constraints(self, run_id: str | None = None) -> list[Constraint]:
        """Instructions in force: those for every run, and with `run_id` that run's own."""
        query = select(Constraint).where(col(Constraint.lifted_at).is_(None)).order_by(col(Constraint.constraint_id))
        with self._db.read() as session:
            return [row for row in session.exec(query) if row.run_id in (None, run_id)]

    def observe(
        self, *, source: str, subject: str, value: Any, run_id: str | None = None, instance_id: int | None = None
    ) -> None:
        """What a source said now; `value` None: it could not say."""
        row = Observation(
            run_id=run_id, instance_id=instance_id, at=self._clock(), source=source, subject=subject, value=value
        )
        with self._db.write() as session:
            session.add(redacted_row(row))

    def observations(self, run_id: str, limit: int = 200) -> list[Observation]:
        """The newest `limit`, newest first."""
        newest = col(Observation.observation_id).desc()
        with self._db.read() as session:
            return list(
                session.exec(select(Observation).where(Observation.run_id == run_id).order_by(newest).limit(limit))
            )

    def add_discrepancy(
        self, run_id: str, *, subject: str, source: str, said: str, other_source: str, against: str
    ) -> bool:
        """Record that two sources disagree; False when this very disagreement is known already."""
        row = redacted_row(
            Discrepancy(
                run_id=run_id,
                at=self._clock(),
                subject=subject,
                source=source,
                said=said,
                other_source=other_source,
                against=against,
            )
        )
        with self._db.write() as session:
            same = select(Discrepancy).where(
                Discrepancy.run_id == run_id,
                Discrepancy.subject == subject,
                Discrepancy.said == row.said,
                Discrepancy.against == row.against,
            )
            if session.exec(same).first() is not None:
                return False
            session.add(row)
            audit.append(
                session, "discrepancy", row.model_dump(exclude={"at", "resolved_at"}), at=row.at, run_id=run_id
            )
        return True

    def discrepancies(self, run_id: str, *, open_only: bool = True) -> list[Discrepancy]:
        query = select(Discrepancy).where(Discrepancy.run_id == run_id).order_by(col(Discrepancy.discrepancy_id))
        with self._db.read() as session:
            return list(session.exec(query.where(col(Discrepancy.resolved_at).is_(None)) if open_only else query))

    def resolve_discrepancy(self, discrepancy_id: int, resolution: str) -> None:
        with self._db.write() as session:
            row = session.get(Discrepancy, discrepancy_id)
            if row is None:
                raise InputError(f"there is no discrepancy {discrepancy_id}")
            self._set(session, row, {"resolved_at": self._clock(), "resolution": resolution})

    # --- audit ---

    def audit(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        origin: str = "",
        run_id: str | None = None,
        plan_id: str | None = None,
    ) -> int:
        """Append one entry and return its number."""
        with self._db.write() as session:
            return audit.append(session, kind, data, at=self._clock(), origin=origin, run_id=run_id, plan_id=plan_id)

    def audit_entries(self, after: int = 0) -> list[AuditEntry]:
        """Entries numbered above `after`, in order."""
        with self._db.read() as session:
            return list(session.exec(select(AuditEntry).where(AuditEntry.seq > after).order_by(col(AuditEntry.seq))))

    def audit_lines(self) -> Iterator[str]:
        """The whole chain as JSON lines, for keeping elsewhere."""
        for entry in self.audit_entries():
            yield audit.canonical(entry.model_dump())

    def verify_audit(self) -> audit.AuditReport:
        with self._db.read() as session:
            return audit.verify(session)

    # --- inside a transaction ---

    @staticmethod
    def _run(session: Session, run_id: str) -> Run:
        run = session.get(Run, run_id)
        if run is None:
            names = list(session.exec(select(Run.run_id)))
            near = get_close_matches(run_id, names, n=1)
            raise InputError(
                f"there is no run named {run_id}", fix=f"Did you mean {near[0]}?" if near else "See: bruno runs"
            )
        return run

    @staticmethod
    def _step(session: Session, run_id: str, name: str) -> RunStep:
        step = session.exec(select(RunStep).where(RunStep.run_id == run_id, RunStep.name == name)).first()
        if step is None:
            raise RecordsError(f"run {run_id} has no step {name}")
        return step
