"""`bruno audit` on a real database: whole, tampered with behind bruno's back, exported, absent."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bruno.cli import main
from bruno.records import Records


def write_entries(home: Path, count: int = 3) -> Path:
    path = home / "bruno.sqlite3"
    records = Records(path, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for number in range(count):
        records.audit("note", {"number": number, "key": "hf_" + "a" * 34})
    records.close()
    return path


def test_a_whole_record(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_entries(home)
    assert main(["audit", "verify"]) == 0
    assert "3 entries" in capsys.readouterr().out
    assert main(["audit", "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "kind": "audit",
        "ok": True,
        "entries": 3,
        "problem": "",
        "acts_with_unknown_outcome": 0,
    }


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit SET data = '{}' WHERE seq = 2", "entry 2 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "entry 2 is missing"),
        ("SELECT 1", "lost its triggers"),
    ],
)
def test_what_was_done_behind_its_back_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], statement: str, problem: str
) -> None:
    with sqlite3.connect(write_entries(home)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
    connection.close()
    assert main(["audit", "verify"]) == 1
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET data = '{}' WHERE seq = 2",
        "DELETE FROM audit",
        "REPLACE INTO audit SELECT * FROM audit WHERE seq = 2",
    ],
)
def test_the_database_itself_refuses_to_rewrite(home: Path, statement: str) -> None:
    connection = sqlite3.connect(write_entries(home))
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    connection.close()
    assert main(["audit", "verify"]) == 0


def test_export_is_one_line_an_entry_without_secrets(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_entries(home)
    assert main(["audit", "export", str(home / "audit.jsonl")]) == 0
    lines = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert lines[1]["previous"] == lines[0]["hash"]
    assert "hf_aaaa" not in (home / "audit.jsonl").read_text()
    assert main(["audit", "export", str(home / "audit.jsonl")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["audit", "export"]) == 0
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 3]


def test_nothing_recorded_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify"]) == 2
    assert "nothing is recorded yet" in capsys.readouterr().err
    assert not (home / "bruno.sqlite3").exists()
