"""Opening, migrating, and what is said when the file is not what it should be."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from bruno.records import Records
from bruno.records.database import HEAD, MIGRATIONS, Database, RecordsError


def test_migrations_and_tables_say_the_same(records: Records) -> None:
    with records._db._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_state_is_readable_by_its_owner_alone(records: Records) -> None:
    assert stat.S_IMODE(records._db.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(records._db.path.parent.stat().st_mode) == 0o700


def test_connection_settings(records: Records) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "recursive_triggers": 1}
    with records._db._engine.connect() as connection:
        assert {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in wanted} == wanted


def test_a_database_at_head_opens_without_alembic(records: Records) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from bruno.records import Records\n"
        "Records(Path(sys.argv[1]), lambda: datetime.now(UTC)).runs()\n"
        "print('alembic' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(records._db.path)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_importing_the_room_loads_no_sqlalchemy() -> None:
    code = "import sys, bruno.records; print('sqlalchemy' in sys.modules)"
    argv = [sys.executable, "-c", code]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_two_processes_may_create_it_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from bruno.records import Records\n"
        "r = Records(Path(sys.argv[1]), lambda: datetime.now(UTC))\n"
        "[r.audit('x', {'n': n}) for n in range(20)]"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "b.sqlite3")]
    workers = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    records = Records(tmp_path / "b.sqlite3", lambda: None)  # type: ignore[arg-type, return-value]
    report = records.verify_audit()
    assert (report.ok, report.entries) == (True, 40)


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"hello " * 1000)


def _somebody_elses(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def _newer(path: Path) -> None:
    Database(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_not_a_database, "damaged"), (_somebody_elses, "not a bruno database"), (_newer, "newer bruno")],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, spoil, words: str) -> None:
    path = tmp_path / "bruno.sqlite3"
    spoil(path)
    with pytest.raises(RecordsError, match=words) as caught:
        Database(path)
    assert str(path) in str(caught.value)


def test_a_failed_block_leaves_nothing(records: Records, a_run) -> None:
    records.add_run(a_run(), ["rent"])
    with pytest.raises(RecordsError, match="no column"):
        records.update_run("demo-1", state="active", colour="red")
    assert records.run("demo-1").state == "confirmed"


def test_a_full_disk_names_itself(records: Records, a_run) -> None:
    with records._db._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # SQLite's own way to run out of room
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    with pytest.raises(RecordsError, match="full"):
        for n in range(1000):
            records.audit("filler", {"text": "x" * 4000, "n": n})
    assert records.verify_audit().ok
