"""What a person reports about a run. The second report of one concern puts the run on hold until it is resolved in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlmodel import col, select

from bruno.errors import InputError
from bruno.records import audit
from bruno.records.acts import ActRows
from bruno.records.redaction import redacted
from bruno.records.tables import Concern

ANYTHING = ""
"""`about` of a concern that names nothing in particular ("something is wrong"): it is the same as any other."""


class ConcernRows(ActRows):
    """The part of `Records` that keeps concerns and holds."""

    _clock: Callable[[], datetime]

    def raise_concern(self, run_id: str, *, words: str, about: str, instance_id: int | None = None) -> Concern:
        """Write a report down: one more word for the open concern it repeats, or a new concern.

        Args:
            about: which kind of concern (`guard.holds.about`); `ANYTHING` repeats whatever is open, and is repeated by anything.

        Returns:
            The concern; its `held_at` is set from its second report on.
        """
        now = self._clock()
        with self._db.write() as session:
            query = select(Concern).where(Concern.run_id == run_id, col(Concern.resolved_at).is_(None))
            open_ones = list(session.exec(query.order_by(col(Concern.concern_id))))
            same = [row for row in open_ones if ANYTHING in (about, row.about) or row.about == about]
            row = next((each for each in same if each.about == about), same[0] if same else None)
            if row is None:
                row = Concern(
                    run_id=run_id, instance_id=instance_id, about=about, words=[redacted(words)], raised_at=now
                )
                session.add(row)
            else:
                changes = {"words": [*row.words, words], "held_at": row.held_at or now, "about": row.about or about}
                self._set(session, row, {**changes, "instance_id": instance_id or row.instance_id})
            session.flush()
            kind = "concern" if row.held_at is None else "hold"
            said = {"concern": row.concern_id, "words": words, "times": len(row.words)}
            audit.append(session, kind, said, at=now, run_id=run_id)
        return row

    def note_evidence(self, concern_id: int, evidence: Sequence[str]) -> Concern:
        """What the sources said when the concern was looked into last."""
        with self._db.write() as session:
            row = session.get(Concern, concern_id)
            if row is None:
                raise InputError(f"there is no concern {concern_id}")
            return self._set(session, row, {"evidence": list(evidence)})

    def concerns(self, run_id: str | None = None, *, held: bool = False) -> list[Concern]:
        """Concerns that are not resolved, oldest first; `held`: only those that hold their run."""
        query = select(Concern).where(col(Concern.resolved_at).is_(None)).order_by(col(Concern.concern_id))
        if run_id is not None:
            query = query.where(Concern.run_id == run_id)
        if held:
            query = query.where(col(Concern.held_at).is_not(None))
        with self._db.read() as session:
            return list(session.exec(query))

    def resolve_concern(self, concern_id: int, resolution: str) -> Concern:
        """The person says what it was: the concern is closed, and with it its hold.

        Raises:
            InputError: no such open concern, or no words.
        """
        if not resolution.strip():
            raise InputError(
                "a concern is resolved in words", fix='For instance: "resolved: the log was of another run"'
            )
        now = self._clock()
        with self._db.write() as session:
            row = session.get(Concern, concern_id)
            if row is None or row.resolved_at is not None:
                raise InputError(f"there is no open concern {concern_id}", fix="See: concerns")
            said = {"concern": concern_id, "words": row.words, "resolution": resolution}
            audit.append(session, "concern resolved", said, at=now, run_id=row.run_id)
            return self._set(session, row, {"resolved_at": now, "resolution": resolution})
