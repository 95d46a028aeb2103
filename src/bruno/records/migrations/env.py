"""Run by Alembic, inside the transaction that `Database._migrate` began: a killed migration leaves the old schema whole."""

from alembic import context
from sqlmodel import SQLModel

import bruno.records.tables  # noqa: F401  (registers the tables)

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True, transactional_ddl=True
)
context.run_migrations()
