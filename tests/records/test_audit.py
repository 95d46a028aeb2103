"""The audit chain: nothing can be changed, removed or replaced unseen."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from bruno.records.audit import GENESIS, TRIGGERS


def fill(records, count: int = 5) -> None:
    for n in range(count):
        records.audit("note", {"n": n}, origin="keyboard")


@pytest.mark.parametrize("recursive", ["ON", "OFF"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET data = '{}' WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 5",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT seq, at, kind, 'x', run_id, plan_id, data, previous, hash FROM audit WHERE seq = 3",
        "REPLACE INTO audit SELECT seq, at, kind, 'x', run_id, plan_id, data, previous, hash FROM audit WHERE seq = 5",
        "INSERT INTO audit SELECT 7, at, kind, origin, run_id, plan_id, data, hash, hash FROM audit WHERE seq = 5",
        "INSERT INTO audit SELECT 6, at, kind, origin, run_id, plan_id, data, previous, hash FROM audit WHERE seq = 5",
        "UPDATE OR REPLACE audit SET seq = 2 WHERE seq = 3",
        "INSERT INTO audit SELECT * FROM audit WHERE seq = 5 ON CONFLICT(seq) DO UPDATE SET data = '{}'",
    ],
)
def test_another_program_cannot_rewrite_it(records, statement: str, recursive: str) -> None:
    fill(records)
    with closing(sqlite3.connect(records._db.path)) as connection:
        connection.execute(f"PRAGMA recursive_triggers={recursive}")
        with pytest.raises(sqlite3.IntegrityError, match="audit"):
            connection.execute(statement)
        connection.commit()
    report = records.verify_audit()
    assert (report.ok, report.entries) == (True, 5)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit SET data = '{}' WHERE seq = 3", "entry 3 was changed"),
        ("UPDATE audit SET at = 'x' WHERE seq = 1", "entry 1 was changed"),
        ("UPDATE audit SET origin = '', kind = 'notekeyboard' WHERE seq = 2", "entry 2 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "entry 2 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "entry 1 is missing"),
        ("UPDATE audit SET previous = hash WHERE seq = 4", "entry 4 does not follow entry 3"),
        ("SELECT 1", "lost its triggers"),
    ],
)
def test_the_owner_of_the_file_is_found_out(records, statement: str, problem: str) -> None:
    fill(records)
    with closing(sqlite3.connect(records._db.path)) as connection:
        for trigger in TRIGGERS:
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(statement)
        connection.commit()
    report = records.verify_audit()
    assert not report.ok
    assert problem in report.problem


def test_a_cut_tail_is_found_by_the_acts_that_refer_to_it(records, clock) -> None:
    records.use_permit("a" * 64, seal="s", origin="keyboard", minted_at=clock())
    records.begin_act(plan_id="a" * 64, action={"kind": "create_instance"})
    with closing(sqlite3.connect(records._db.path)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM audit WHERE seq = 2")
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()
    assert "an act refers to entry 2" in records.verify_audit().problem


def test_entries_are_exported_as_json_lines(records) -> None:
    fill(records, 2)
    first, second = (json.loads(line) for line in records.audit_lines())
    assert (first["previous"], second["previous"]) == (GENESIS, first["hash"])
    assert first["data"] == '{"n":0}'
    assert first["at"] == "2026-01-01T00:00:00+00:00"
