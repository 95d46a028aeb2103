"""First schema: runs, instances, confirmations and acts, instructions and observations, the audit chain and its triggers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, *, null: bool = False, **more: object) -> sa.Column:
    return sa.Column(name, sa.String(), nullable=null, **more)  # type: ignore[arg-type]


def _time(name: str, *, null: bool = True) -> sa.Column:
    return sa.Column(name, sa.DateTime(), nullable=null)


def _json(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.JSON(), nullable=null)


def upgrade() -> None:
    _runs()
    _instances()
    _acts()
    _knowledge()
    _audit()


def _runs() -> None:
    op.create_table(
        "run",
        _text("run_id", primary_key=True),
        _text("label"),
        _text("title"),
        _text("model"),
        _text("behaviour"),
        _text("playbook"),
        _text("plan_id"),
        _text("plan_json"),
        _json("settings"),
        _text("state"),
        _text("problem"),
        sa.Column("instance_id", sa.Integer()),
        sa.Column("trials", sa.Integer()),
        _text("remote_model", null=True),
        _text("local_model", null=True),
        _time("created_at", null=False),
        _time("updated_at", null=False),
        _time("finished_at"),
        sa.UniqueConstraint("label"),
    )
    op.create_table(
        "run_step",
        _text("run_id", primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True, nullable=False),
        _text("name"),
        _text("state"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _json("detail"),
        _text("problem"),
        _time("started_at"),
        _time("ended_at"),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"]),
    )


def _instances() -> None:
    op.create_table(
        "instance",
        sa.Column("instance_id", sa.Integer(), primary_key=True, nullable=False, autoincrement=False),
        _text("label"),
        _text("run_id", null=True),
        sa.Column("machine_id", sa.Integer()),
        _text("gpu"),
        sa.Column("gpu_count", sa.Integer(), nullable=False),
        sa.Column("disk_gb", sa.Float()),
        sa.Column("dph_total", sa.Float()),
        sa.Column("disk_per_hour", sa.Float()),
        _text("ssh_host", null=True),
        sa.Column("ssh_port", sa.Integer()),
        _text("status", null=True),
        _time("rented_at"),
        _time("running_since"),
        sa.Column("running_seconds", sa.Float(), nullable=False),
        _time("seen_at"),
        _time("stopped_at"),
        _time("gone_at"),
    )


def _acts() -> None:
    op.create_table(
        "plan",
        _text("plan_id", primary_key=True),
        _text("plan_json"),
        _time("created_at", null=False),
        _time("expires_at", null=False),
    )
    op.create_table(
        "confirmation",
        _text("plan_id", primary_key=True),
        _text("seal_hash"),
        _text("origin"),
        _time("minted_at", null=False),
        _time("used_at", null=False),
    )
    op.create_table(
        "act",
        sa.Column("act_id", sa.Integer(), primary_key=True, nullable=False),
        _text("plan_id"),
        _text("action_hash"),
        _text("kind"),
        _json("action"),
        _text("run_id", null=True),
        _text("label"),
        _text("outcome"),
        _json("result"),
        _text("problem"),
        _time("begun_at", null=False),
        _time("ended_at"),
        sa.Column("audit_before", sa.Integer(), nullable=False),
        sa.Column("audit_after", sa.Integer()),
        sa.ForeignKeyConstraint(["plan_id"], ["confirmation.plan_id"]),
        sa.UniqueConstraint("plan_id", "action_hash", name="one_act_per_confirmed_action"),
    )
    op.create_index("ix_act_run_id", "act", ["run_id"])
    op.create_index("ix_act_outcome", "act", ["outcome"])


def _knowledge() -> None:
    op.create_table(
        "constraint_",
        sa.Column("constraint_id", sa.Integer(), primary_key=True, nullable=False),
        _text("run_id", null=True),
        _text("rule"),
        _json("value", null=True),
        _text("words"),
        _time("set_at", null=False),
        _time("lifted_at"),
    )
    op.create_table(
        "observation",
        sa.Column("observation_id", sa.Integer(), primary_key=True, nullable=False),
        _text("run_id", null=True),
        sa.Column("instance_id", sa.Integer()),
        _time("at", null=False),
        _text("source"),
        _text("subject"),
        _json("value", null=True),
    )
    op.create_index("ix_observation_run_id", "observation", ["run_id"])
    op.create_table(
        "discrepancy",
        sa.Column("discrepancy_id", sa.Integer(), primary_key=True, nullable=False),
        _text("run_id"),
        _time("at", null=False),
        _text("subject"),
        _text("source"),
        _text("said"),
        _text("other_source"),
        _text("against"),
        _time("resolved_at"),
        _text("resolution"),
        sa.UniqueConstraint("run_id", "subject", "said", "against", name="one_row_per_disagreement"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), primary_key=True, nullable=False, autoincrement=False),
        _text("at"),
        _text("kind"),
        _text("origin"),
        _text("run_id", null=True),
        _text("plan_id", null=True),
        _text("data"),
        _text("previous"),
        _text("hash"),
    )
    for verb in ("update", "delete"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb} BEFORE {verb.upper()} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
        )
    # Without recursive_triggers REPLACE deletes silently, and another program may not set it: an entry must be new and next.
    op.execute(
        "CREATE TRIGGER audit_follows BEFORE INSERT ON audit "
        "WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq), 0) + 1 FROM audit) "
        "OR NEW.previous IS NOT COALESCE((SELECT hash FROM audit ORDER BY seq DESC LIMIT 1), printf('%064d', 0)) "
        "BEGIN SELECT RAISE(ABORT, 'an audit entry must follow the last one'); END"
    )
