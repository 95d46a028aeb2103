"""The tables. Times are aware UTC datetimes, money US dollars, disk GB of 10^9 bytes; None means unknown, never zero.

JSON columns hold plain dicts and lists. Text that came from people, hosts or the provider was redacted on its way in
(`repository`), so no row holds a key.
"""

# pyright: reportAssignmentType=false
# (SQLModel declares __tablename__ as a declared_attr; plain strings are how it is documented to be set.)
from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Integer, String, TypeDecorator, UniqueConstraint
from sqlmodel import Column, Field, SQLModel


class UtcTime(TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out; SQLite itself keeps no zone. A naive time is an error."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be recorded")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


class RunState(StrEnum):
    """`confirmed` until the machine is rented, `active` while steps remain, `failed` can be carried on, the rest is the end."""

    CONFIRMED = "confirmed"
    ACTIVE = "active"
    FAILED = "failed"
    FINISHED = "finished"
    ENDED = "ended"


class StepState(StrEnum):
    PENDING = "pending"
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


class Outcome(StrEnum):
    """Of an act. `unknown`: the reply was lost and the provider has not been asked successfully since."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


class PlanRecord(SQLModel, table=True):
    """A plan that was shown, kept so that a script can confirm it by its id."""

    __tablename__ = "plan"
    plan_id: str = Field(sa_column=Column(String, primary_key=True))
    plan_json: str
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime)


class Confirmation(SQLModel, table=True):
    """A permit that was used up. The primary key makes the second use of one plan's confirmation fail atomically."""

    __tablename__ = "confirmation"
    plan_id: str = Field(primary_key=True)
    seal_hash: str
    """sha256 of the permit's seal: the process that confirmed may go on with the plan's other actions, nobody else may."""
    origin: str
    minted_at: datetime = Field(sa_type=UtcTime)
    used_at: datetime = Field(sa_type=UtcTime)


class Run(SQLModel, table=True):
    """One run: a plan that was confirmed, the machine it got, and how far it is."""

    __tablename__ = "run"
    run_id: str = Field(primary_key=True)
    label: str = Field(sa_column=Column(String, unique=True, nullable=False))
    """Label of its instance at the provider."""
    title: str
    model: str
    behaviour: str = ""
    playbook: str
    plan_id: str
    plan_json: str
    settings: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    """Engine settings in force when it began: what config.toml on the machine says."""
    state: str = RunState.CONFIRMED.value
    problem: str = ""
    """Why it failed, in one sentence."""
    instance_id: int | None = None
    group_id: str | None = Field(default=None, index=True)
    """Of a run over several instances: the first one's run id, the same in all their rows. None: a run on one instance."""
    trials: int | None = None
    remote_model: str | None = None
    local_model: str | None = None
    created_at: datetime = Field(sa_type=UtcTime)
    updated_at: datetime = Field(sa_type=UtcTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcTime)


class RunStep(SQLModel, table=True):
    """One step of a run's playbook. `detail` is what a restarted console needs to go on."""

    __tablename__ = "run_step"
    run_id: str = Field(sa_column=Column(String, ForeignKey("run.run_id"), primary_key=True))
    position: int = Field(primary_key=True)
    name: str
    state: str = StepState.PENDING.value
    attempts: int = 0
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    problem: str = ""
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)


class InstanceRecord(SQLModel, table=True):
    """An instance that bruno rented or acted on, as last seen. Billing clocks are kept here: see `runs.money`."""

    __tablename__ = "instance"
    instance_id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    label: str
    run_id: str | None = None
    machine_id: int | None = None
    gpu: str = ""
    gpu_count: int = 1
    disk_gb: float | None = None
    dph_total: float | None = None
    """$/h while running, disk included."""
    disk_per_hour: float | None = None
    """$/h of the disk alone: what a stopped instance costs."""
    ssh_host: str | None = None
    ssh_port: int | None = None
    status: str | None = None
    rented_at: datetime | None = Field(default=None, sa_type=UtcTime)
    running_since: datetime | None = Field(default=None, sa_type=UtcTime)
    """Start of the present running stint; None when it was not running at the last reading."""
    running_seconds: float = 0.0
    """Length of earlier running stints, each counted to the first reading that found it over (never too short)."""
    seen_at: datetime | None = Field(default=None, sa_type=UtcTime)
    stopped_at: datetime | None = Field(default=None, sa_type=UtcTime)
    gone_at: datetime | None = Field(default=None, sa_type=UtcTime)


class Act(SQLModel, table=True):
    """One call that changes the world: written before it is made, and again when its outcome is known."""

    __tablename__ = "act"
    __table_args__ = (UniqueConstraint("plan_id", "action_hash", name="one_act_per_confirmed_action"),)
    act_id: int | None = Field(default=None, primary_key=True)
    plan_id: str = Field(sa_column=Column(String, ForeignKey("confirmation.plan_id"), nullable=False))
    action_hash: str
    """sha256 of the action's canonical JSON."""
    kind: str
    action: dict[str, Any] = Field(sa_type=JSON)
    run_id: str | None = Field(default=None, index=True)
    label: str = ""
    """Where to look when the reply was lost."""
    outcome: str = Field(default=Outcome.PENDING.value, index=True)
    result: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    problem: str = ""
    begun_at: datetime = Field(sa_type=UtcTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    audit_before: int
    audit_after: int | None = None


class Constraint(SQLModel, table=True):
    """A standing instruction ("don't stop it"). In force until it is lifted; `run_id` None binds every run."""

    __tablename__ = "constraint_"
    constraint_id: int | None = Field(default=None, primary_key=True)
    run_id: str | None = None
    rule: str
    value: Any = Field(default=None, sa_column=Column(JSON, nullable=True))
    words: str
    set_at: datetime = Field(sa_type=UtcTime)
    lifted_at: datetime | None = Field(default=None, sa_type=UtcTime)


class Observation(SQLModel, table=True):
    """Something one source said at one time. `value` None means the source could not say."""

    __tablename__ = "observation"
    observation_id: int | None = Field(default=None, primary_key=True)
    run_id: str | None = Field(default=None, index=True)
    instance_id: int | None = None
    at: datetime = Field(sa_type=UtcTime)
    source: str
    """log, events, process, provider, disk, study, person."""
    subject: str
    value: Any = Field(default=None, sa_column=Column(JSON, nullable=True))


class Discrepancy(SQLModel, table=True):
    """Two sources that disagree about one thing. Shown until it is resolved, never smoothed over."""

    __tablename__ = "discrepancy"
    __table_args__ = (UniqueConstraint("run_id", "subject", "said", "against", name="one_row_per_disagreement"),)
    discrepancy_id: int | None = Field(default=None, primary_key=True)
    run_id: str
    at: datetime = Field(sa_type=UtcTime)
    subject: str
    source: str
    said: str
    other_source: str
    against: str
    resolved_at: datetime | None = Field(default=None, sa_type=UtcTime)
    resolution: str = ""


class Concern(SQLModel, table=True):
    """Something a person reported about a run ("it looks stuck"). From its second report on it holds the run."""

    __tablename__ = "concern"
    concern_id: int | None = Field(default=None, primary_key=True)
    run_id: str = Field(index=True)
    instance_id: int | None = None
    about: str = ""
    """Kind of concern; "" names nothing in particular."""
    words: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Every report of it, as said."""
    evidence: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """What each source said when it was looked into last."""
    raised_at: datetime = Field(sa_type=UtcTime)
    held_at: datetime | None = Field(default=None, sa_type=UtcTime)
    resolved_at: datetime | None = Field(default=None, sa_type=UtcTime)
    resolution: str = ""


class AuditEntry(SQLModel, table=True):
    """One link of the audit chain. Triggers refuse UPDATE, DELETE, REPLACE and any entry that does not follow the last."""

    __tablename__ = "audit"
    seq: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    at: str
    """ISO time in UTC, as hashed."""
    kind: str
    origin: str = ""
    run_id: str | None = None
    plan_id: str | None = None
    data: str
    """Canonical JSON, as hashed."""
    previous: str
    hash: str
