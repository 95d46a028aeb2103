"""Runs, steps, instances, instructions, discrepancies; and no secret in any of them."""

from __future__ import annotations

from datetime import datetime

import pytest

from bruno.errors import InputError
from bruno.intents import SetConstraint
from bruno.records.tables import Outcome
from bruno.settings import secrets

KEY = "hf_" + "a" * 30


def test_runs_come_newest_first_and_open_ones_alone(records, clock, a_run) -> None:
    for name in ("one", "two", "three"):
        records.add_run(a_run(name), ["rent"])
        clock.forward(minutes=1)
    records.update_run("two", state="finished")
    assert [run.run_id for run in records.runs()] == ["three", "two", "one"]
    assert [run.run_id for run in records.runs(open_only=True)] == ["three", "one"]


def test_a_label_or_id_is_used_once(records, a_run) -> None:
    records.add_run(a_run("one"), ["rent"])
    for other in (a_run("one", label="x"), a_run("two", label="bruno-one")):
        with pytest.raises(InputError, match="already"):
            records.add_run(other, ["rent"])
    assert len(records.runs()) == 1


def test_an_unknown_run_suggests_the_nearest(records, a_run) -> None:
    records.add_run(a_run("qwen32b-1"), ["rent"])
    with pytest.raises(InputError, match=r"Did you mean qwen32b-1\?"):
        records.run("qwen32-1")


def test_times_come_back_aware_and_naive_ones_are_refused(records, clock, a_run) -> None:
    records.add_run(a_run(), ["rent"])
    assert records.run("demo-1").created_at == clock()
    assert records.run("demo-1").created_at.utcoffset() is not None
    with pytest.raises(Exception, match="without a zone"):
        records.update_run("demo-1", finished_at=datetime(2026, 1, 1))


def test_steps_remember_across_attempts(records, a_run) -> None:
    records.add_run(a_run(), ["rent", "launch"])
    assert records.start_step("demo-1", "launch").attempts == 1
    records.note_step("demo-1", "launch", job="job-1")
    failed = records.end_step("demo-1", "launch", problem="died", code=1)
    assert (failed.state, failed.problem, failed.detail) == ("failed", "died", {"job": "job-1", "code": 1})
    again = records.start_step("demo-1", "launch")
    assert (again.attempts, again.problem, again.detail["job"]) == (2, "", "job-1")
    assert records.end_step("demo-1", "launch").state == "done"
    assert [step.state for step in records.steps("demo-1")] == ["pending", "done"]
    assert records.reopen_step("demo-1", "launch", detail={"job": "job-2"}).detail == {"job": "job-2"}


@pytest.mark.parametrize(
    ("readings", "seconds", "since"),
    [
        # (minutes, running): a stint starts at the reading before and ends at the one that found it over
        ([(0, False), (1, True), (5, True)], 0.0, 0),
        ([(0, False), (1, True), (5, False)], 300.0, None),
        ([(0, True), (5, None), (6, True)], 0.0, 0),
        ([(0, False), (1, True), (3, False), (4, True)], 180.0, 3),
        ([(0, None), (10, None)], 0.0, None),
    ],
)
def test_billing_clocks_are_never_too_short(records, clock, readings, seconds: float, since) -> None:
    start = clock()
    records.note_instance(101, label="x", rented_at=start, dph_total=1.0)
    for minutes, running in readings:
        clock.now = start
        clock.forward(minutes=minutes)
        row = records.note_instance(101, running=running)
    assert row.running_seconds == seconds
    assert row.running_since == (None if since is None else start.replace(minute=since))
    assert row.dph_total == 1.0


def test_an_instance_that_is_gone_ends_its_clocks(records, clock) -> None:
    records.note_instance(101, label="x", running=True, ssh_port=40022)
    clock.forward(hours=1)
    gone = records.note_instance(101, gone=True, ssh_port=None)
    clock.forward(hours=1)
    assert records.note_instance(101, gone=True).gone_at == gone.gone_at
    assert (gone.running_seconds, gone.running_since, gone.ssh_port) == (3600.0, None, 40022)


def test_instructions_hold_until_they_are_lifted(records) -> None:
    everywhere = records.add_constraint(SetConstraint(rule="max_dph", value=3.0, words="under 3 $/h"))
    records.add_constraint(SetConstraint(rule="no_stop", words="don't stop it"), run_id="one")
    assert [row.rule for row in records.constraints("one")] == ["max_dph", "no_stop"]
    assert [row.rule for row in records.constraints("two")] == ["max_dph"]
    records.lift_constraint(everywhere.constraint_id)
    assert [row.rule for row in records.constraints()] == []
    with pytest.raises(InputError):
        records.lift_constraint(99)


def test_a_disagreement_is_recorded_once_until_resolved(records) -> None:
    said = {"subject": "trial 5", "source": "log", "said": "3/104", "other_source": "events", "against": "4/104"}
    assert [records.add_discrepancy("one", **said) for _ in range(2)] == [True, False]
    (row,) = records.discrepancies("one")
    records.resolve_discrepancy(row.discrepancy_id, "the log was cut")
    assert records.discrepancies("one") == []
    assert records.discrepancies("one", open_only=False)[0].resolution == "the log was cut"


def test_no_secret_enters_the_file(records, clock, a_run, monkeypatch) -> None:
    monkeypatch.setattr(secrets, "_known", {"my own vast key"})
    records.add_run(a_run(title=f"start {KEY}", settings={"a": [{"b": "my own vast key"}]}), ["rent"])
    records.note_step("demo-1", "rent", output=f"token {KEY}")
    records.observe(source="log", subject="tail", value=[KEY], run_id="demo-1")
    records.audit("note", {KEY: "my own vast key"})
    records.use_permit("a" * 64, seal="s", origin="keyboard", minted_at=clock())
    act = records.begin_act(plan_id="a" * 64, action={"kind": "x", "env": KEY})
    records.end_act(act.act_id, Outcome.FAILED, problem=f"Bearer {KEY}")
    records.add_constraint(SetConstraint(rule="no_stop", words=f"with {KEY}"))
    records.add_discrepancy("demo-1", subject="s", source="a", said=KEY, other_source="b", against="c")
    records.note_instance(1, label=KEY)
    records.close()
    for file in records._db.path.parent.iterdir():
        for secret in (KEY, "my own vast key"):
            assert secret.encode() not in file.read_bytes(), file
    assert records.run("demo-1").settings == {"a": [{"b": "[redacted]"}]}


def test_observations_keep_unknown_apart_from_empty(records) -> None:
    records.observe(source="disk", subject="free_gb", value=None, run_id="one")
    records.observe(source="disk", subject="free_gb", value=0, run_id="one")
    assert [row.value for row in records.observations("one")] == [0, None]
