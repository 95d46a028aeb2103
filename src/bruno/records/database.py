"""The SQLite file: opened once, brought to the newest schema, one transaction at a time.

WAL and a busy timeout let two consoles work on it; `synchronous=FULL` makes what was written before an act survive a power
cut; `recursive_triggers` lets the audit's DELETE trigger see REPLACE. Alembic is imported only when the schema is behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, create_engine

from bruno.errors import BrunoError

HEAD = "0003"
"""The newest migration in migrations/versions; a test holds the two together."""
MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS = 10.0


class RecordsError(BrunoError):
    """The database cannot be read or written. Nothing is done without records, so nothing was done."""


class Database:
    """One SQLite file. `read` and `write` give a session inside one transaction; `write` holds the file's write lock.

    Raises:
        RecordsError: not a bruno database, made by a newer bruno, damaged, locked for too long, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise RecordsError(
                f"{path} cannot be made: {error.strerror}", fix="Check the folder, or set BRUNO_HOME"
            ) from error
        behind = _version(path) != HEAD
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        if behind:
            self._migrate()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database."""
        with self._named_errors(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session under the write lock: committed whole at the end of the block, or not at all."""
        with self._named_errors(), Session(self._engine, expire_on_commit=False) as session:
            session.connection(execution_options={"bruno_write": True})
            yield session
            session.commit()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self._named_errors(), self._engine.connect() as connection:
                writing = connection.execution_options(bruno_write=True)
                config.attributes["connection"] = writing
                with writing.begin():
                    command.upgrade(config, "head")
        except CommandError as error:
            raise RecordsError(f"{self.path} was written by a newer bruno ({error})", fix="Update bruno") from error

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _explained(self.path, error.orig) from error


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("bruno_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _version(path: Path) -> str | None:
    """The schema's version, None for an empty file. Read without SQLAlchemy: this is every start's first step."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                return None
            if "alembic_version" not in tables:
                raise RecordsError(f"{path} is not a bruno database", fix="Move it away, or set BRUNO_HOME")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return row[0] if row else None
    except sqlite3.Error as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: BaseException | None) -> RecordsError:
    text = str(error)
    if "locked" in text:
        return RecordsError(f"{path} is held by another program", fix="Close it and try again")
    if "full" in text or "disk I/O" in text:
        return RecordsError(f"{path} cannot be written ({text})", fix="Free some disk space")
    if "malformed" in text or "not a database" in text:
        return RecordsError(
            f"{path} is damaged ({text})", fix="Move it away to start anew; instances are found again at the provider"
        )
    if "readonly" in text or "unable to open" in text:
        return RecordsError(f"{path} cannot be opened for writing", fix="Check its permissions, or set BRUNO_HOME")
    return RecordsError(f"{path}: {text}")
