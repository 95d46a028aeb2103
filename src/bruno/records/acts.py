"""Plans, confirmations and acts: what may be done once, what is about to be done, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from sqlmodel import Session, SQLModel, col, select

from bruno.errors import Denied, InputError
from bruno.records import audit
from bruno.records.database import Database, RecordsError
from bruno.records.redaction import redacted, redacted_row
from bruno.records.tables import Act, AuditEntry, Confirmation, Outcome, PlanRecord

Row = TypeVar("Row", bound=SQLModel)
_RENTALS = ("create_instance", "start_instance")
STOP = "STOP"
"""Kind of the audit entry that a STOP leaves."""


class ActRows:
    """The part of `Records` that a permit passes through."""

    _db: Database
    _clock: Callable[[], datetime]

    def save_plan(self, plan_id: str, plan_json: str, *, created_at: datetime, expires_at: datetime) -> None:
        """Keep a plan that was shown, so that a script can confirm it by its id. A second time changes nothing."""
        with self._db.write() as session:
            if session.get(PlanRecord, plan_id) is None:
                session.add(
                    redacted_row(
                        PlanRecord(plan_id=plan_id, plan_json=plan_json, created_at=created_at, expires_at=expires_at)
                    )
                )
                audit.append(session, "plan", {"expires_at": expires_at.isoformat()}, at=self._clock(), plan_id=plan_id)

    def plan(self, plan_id: str) -> PlanRecord:
        """The plan with this id, or the only one that begins with it (12 characters or more). InputError when there is none."""
        with self._db.read() as session:
            row = session.get(PlanRecord, plan_id)
            if row is None and len(plan_id) >= 12:
                some = list(
                    session.exec(
                        select(PlanRecord).where(col(PlanRecord.plan_id).startswith(plan_id, autoescape=True)).limit(2)
                    )
                )
                row = some[0] if len(some) == 1 else None
        if row is None:
            raise InputError(f"there is no plan {plan_id}", fix="Ask for the plan again")
        return row

    def use_permit(
        self,
        plan_id: str,
        *,
        seal: str,
        origin: str,
        minted_at: datetime,
        run_id: str | None = None,
        kind: str = "",
    ) -> Confirmation:
        """Use a permit up: one atomic insert for each plan.

        The same permit may come again, for the next action of its plan; whoever comes with another permit for the same plan
        (a second console, the same printed id twice) is too late.

        Args:
            kind: of the action that is about to be begun; a stop is the one kind that a STOP said meanwhile does not prevent.

        Raises:
            Denied: the plan was confirmed and used before, or STOP was said after it was confirmed.
        """
        seal_hash = hashlib.sha256(seal.encode()).hexdigest()
        with self._db.write() as session:
            row = session.get(Confirmation, plan_id)
            if row is not None and row.seal_hash != seal_hash:
                raise Denied("this plan was confirmed and carried out before", fix="Ask for a new plan")
            _not_after_stop(session, minted_at, kind)
            if row is None:
                row = Confirmation(
                    plan_id=plan_id, seal_hash=seal_hash, origin=origin, minted_at=minted_at, used_at=self._clock()
                )
                session.add(row)
                audit.append(session, "confirmed", {}, at=row.used_at, origin=origin, run_id=run_id, plan_id=plan_id)
        return row

    def begin_act(
        self,
        *,
        plan_id: str,
        action: Mapping[str, Any],
        label: str = "",
        run_id: str | None = None,
        allowed: bool = False,
        planned_at: datetime | None = None,
    ) -> Act:
        """Write down what is about to be done, before it is done.

        Args:
            allowed: the guard asks for no confirmation of it (a shell line that only reads).
            planned_at: when its plan was made. A rental is not begun when another was begun since: the plan did not show it.

        Raises:
            Denied: this action of this plan was begun before, whatever came of it; or STOP was said after the confirmation.
        """
        plain = redacted(dict(action))
        with self._db.write() as session:
            confirmation = session.get(Confirmation, plan_id)
            if confirmation is None and not allowed:
                raise Denied("nothing is done without a confirmation in the records")
            if confirmation is None:
                self._let_through(session, plan_id, run_id)
            else:
                _not_after_stop(session, confirmation.minted_at, str(plain.get("kind")))
            if planned_at is not None and plain.get("kind") in _RENTALS:
                _only_rental(session, plan_id, planned_at)
            if _find(session, plan_id, action) is not None:
                raise Denied(
                    f"this was done under the same confirmation before: {plain.get('kind')}", fix="Ask for a new plan"
                )
            now = self._clock()
            seq = audit.append(session, "act begun", plain, at=now, run_id=run_id, plan_id=plan_id)
            act = Act(
                plan_id=plan_id,
                action_hash=action_hash(action),
                kind=str(plain.get("kind", "")),
                action=plain,
                run_id=run_id,
                label=label,
                begun_at=now,
                audit_before=seq,
            )
            session.add(act)
        return act

    def _let_through(self, session: Session, plan_id: str, run_id: str | None) -> None:
        """The guard asked nobody: the plan is used up all the same, and the record says by whom it was let through."""
        now = self._clock()
        session.add(Confirmation(plan_id=plan_id, seal_hash="", origin="guard", minted_at=now, used_at=now))
        session.flush()
        audit.append(session, "allowed", {}, at=now, origin="guard", run_id=run_id, plan_id=plan_id)

    def end_act(
        self, act_id: int, outcome: Outcome, *, result: Mapping[str, Any] | None = None, problem: str = ""
    ) -> Act:
        """What came of it. A settled act (done, failed) is not settled a second time."""
        with self._db.write() as session:
            act = session.get(Act, act_id)
            if act is None:
                raise RecordsError(f"there is no act {act_id}")
            if act.outcome in (Outcome.DONE.value, Outcome.FAILED.value):
                raise RecordsError(f"act {act_id} is settled already: {act.outcome}")
            now = self._clock()
            said = {"act": act_id, "outcome": outcome.value, "result": dict(result or {}), "problem": problem}
            seq = audit.append(session, "act ended", said, at=now, run_id=act.run_id, plan_id=act.plan_id)
            changes = {"outcome": outcome.value, "result": dict(result or {}), "problem": problem, "ended_at": now}
            return self._set(session, act, {**changes, "audit_after": seq})

    def act(self, plan_id: str, action: Mapping[str, Any]) -> Act | None:
        """The act that was begun for this action of this plan, if any."""
        with self._db.read() as session:
            return _find(session, plan_id, action)

    def acts(self, *, run_id: str | None = None, unsettled: bool = False) -> list[Act]:
        """Acts in order; `unsettled`: those whose outcome is pending or unknown."""
        query = select(Act).order_by(col(Act.act_id))
        if run_id is not None:
            query = query.where(Act.run_id == run_id)
        if unsettled:
            query = query.where(col(Act.outcome).in_((Outcome.PENDING.value, Outcome.UNKNOWN.value)))
        with self._db.read() as session:
            return list(session.exec(query))

    @staticmethod
    def _set(session: Session, row: Row, changes: Mapping[str, Any]) -> Row:
        """Assign redacted values; a name that is no column is a defect of the caller and is said so."""
        for name, value in changes.items():
            if name not in type(row).model_fields:
                raise RecordsError(f"{type(row).__name__} has no column {name}")
            setattr(row, name, redacted(value))
        session.add(row)
        return row


def _not_after_stop(session: Session, confirmed_at: datetime, kind: str) -> None:
    """STOP reaches every console on these records: what was confirmed before it begins nothing after it. A stop still does."""
    query = select(AuditEntry).where(AuditEntry.kind == STOP).order_by(col(AuditEntry.seq).desc()).limit(1)
    last = session.exec(query).first()
    if last is None or kind == "stop_instance":
        return
    if datetime.fromisoformat(last.at) >= confirmed_at:
        raise Denied(
            "STOP was said after this was confirmed: it is not begun", fix="Ask for it again if you still want it"
        )


def _only_rental(session: Session, plan_id: str, planned_at: datetime) -> None:
    """Under the write lock, so that of two consoles that rent at the same moment the second one sees the first."""
    query = select(Act).where(
        col(Act.kind).in_(_RENTALS),
        Act.plan_id != plan_id,
        Act.begun_at >= planned_at,
        Act.outcome != Outcome.FAILED.value,
    )
    other = session.exec(query).first()
    if other is not None:
        raise Denied(
            f"what was confirmed has changed: {other.label or 'another machine'} was rented at "
            f"{other.begun_at:%H:%M:%S} UTC, after this plan was made; nothing was rented for it",
            fix="Ask again: the plan then shows what is running",
        )


def action_hash(action: Mapping[str, Any]) -> str:
    """Hex sha256 of the action's canonical JSON."""
    return hashlib.sha256(audit.canonical(dict(action)).encode()).hexdigest()


def _find(session: Session, plan_id: str, action: Mapping[str, Any]) -> Act | None:
    return session.exec(select(Act).where(Act.plan_id == plan_id, Act.action_hash == action_hash(action))).first()
