"""A run over several instances: a row for each of them, which name the same group."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("run", sa.Column("group_id", sa.String()))
    op.create_index("ix_run_group_id", "run", ["group_id"])
