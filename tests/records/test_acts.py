"""One confirmation, one act: whoever comes second is refused, in this process or another."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bruno.errors import Denied, InputError
from bruno.records import Records
from bruno.records.database import RecordsError
from bruno.records.tables import Outcome

PLAN = "a" * 64
CREATE = {"kind": "create_instance", "offer_id": 1, "label": "bruno-x"}
STOP = {"kind": "stop_instance", "target": {"instance_id": 101}}


def confirm(records: Records, clock, plan: str = PLAN, seal: str = "seal") -> None:
    records.use_permit(plan, seal=seal, origin="keyboard", minted_at=clock())


def test_the_same_permit_serves_every_action_of_its_plan_once(records, clock) -> None:
    confirm(records, clock)
    confirm(records, clock)
    first = records.begin_act(plan_id=PLAN, action=CREATE, label="bruno-x")
    second = records.begin_act(plan_id=PLAN, action=STOP)
    assert (first.outcome, second.outcome) == ("pending", "pending")
    with pytest.raises(Denied, match="same confirmation"):
        records.begin_act(plan_id=PLAN, action=CREATE)


def test_another_permit_for_the_same_plan_is_too_late(records, clock) -> None:
    confirm(records, clock)
    with pytest.raises(Denied, match="before"):
        confirm(records, clock, seal="another")


def test_no_act_without_a_confirmation(records) -> None:
    with pytest.raises(Denied, match="without a confirmation"):
        records.begin_act(plan_id=PLAN, action=CREATE)
    assert records.acts() == []


def test_two_processes_with_one_plan_act_once(records) -> None:
    code = (
        "import sys, os; from pathlib import Path; from datetime import datetime, UTC\n"
        "from bruno.records import Records; from bruno.errors import Denied\n"
        "r = Records(Path(sys.argv[1]), lambda: datetime.now(UTC))\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    r.use_permit('a' * 64, seal=str(os.getpid()), origin='script', minted_at=datetime.now(UTC))\n"
        "    r.begin_act(plan_id='a' * 64, action={'kind': 'create_instance'})\n"
        "    print('acted')\n"
        "except Denied: print('denied')\n"
    )
    argv = [sys.executable, "-c", code, str(records._db.path)]
    consoles = [subprocess.Popen(argv, stdin=-1, stdout=-1, text=True) for _ in range(3)]
    for console in consoles:
        console.stdin.write("\n")
        console.stdin.flush()
    assert sorted(console.communicate()[0].strip() for console in consoles) == ["acted", "denied", "denied"]
    assert len(records.acts()) == 1


def test_an_act_survives_with_its_outcome_unknown(records, clock) -> None:
    confirm(records, clock)
    act = records.begin_act(plan_id=PLAN, action=CREATE, label="bruno-x", run_id="r")
    assert [a.label for a in records.acts(unsettled=True)] == ["bruno-x"]
    records.end_act(act.act_id, Outcome.UNKNOWN, problem="the reply was lost")
    assert [a.outcome for a in records.acts(unsettled=True)] == ["unknown"]
    done = records.end_act(act.act_id, Outcome.DONE, result={"instance_id": 101})
    assert (done.result, records.acts(unsettled=True)) == ({"instance_id": 101}, [])
    with pytest.raises(RecordsError, match="settled already"):
        records.end_act(act.act_id, Outcome.FAILED)
    kinds = [entry.kind for entry in records.audit_entries()]
    assert kinds == ["confirmed", "act begun", "act ended", "act ended"]


def test_plans_are_found_by_a_long_beginning_only(records, clock) -> None:
    for plan in ("a" * 64, "a" * 20 + "b" * 44):
        records.save_plan(plan, "{}", created_at=clock(), expires_at=clock())
    assert records.plan("a" * 64).plan_id == "a" * 64
    assert records.plan("a" * 20 + "b").plan_id == "a" * 20 + "b" * 44
    for wrong in ("a" * 12, "a" * 11, "c" * 64, "%" * 12, ""):
        with pytest.raises(InputError):
            records.plan(wrong)


def test_a_stop_said_after_the_confirmation_lets_nothing_begin_but_a_stop(records, clock) -> None:
    confirm(records, clock)
    clock.forward(seconds=1)
    records.audit("STOP", {})
    with pytest.raises(Denied, match="STOP was said"):
        records.begin_act(plan_id=PLAN, action=CREATE)
    assert records.begin_act(plan_id=PLAN, action=STOP).outcome == "pending"
    with pytest.raises(Denied, match="STOP was said"):
        records.use_permit("b" * 64, seal="s", origin="keyboard", minted_at=clock())
    clock.forward(seconds=1)
    confirm(records, clock, plan="c" * 64)
    assert records.begin_act(plan_id="c" * 64, action=CREATE).outcome == "pending"


def test_a_rental_that_its_plan_could_not_show_keeps_the_next_one_from_beginning(records, clock) -> None:
    planned = clock()
    clock.forward(seconds=1)
    confirm(records, clock)
    confirm(records, clock, plan="b" * 64)
    act = records.begin_act(plan_id=PLAN, action=CREATE, label="bruno-x", planned_at=planned)
    with pytest.raises(Denied, match="bruno-x was rented at"):
        records.begin_act(plan_id="b" * 64, action={**CREATE, "label": "bruno-y"}, planned_at=planned)
    records.end_act(act.act_id, Outcome.FAILED)
    assert records.begin_act(plan_id="b" * 64, action={**CREATE, "label": "bruno-y"}, planned_at=planned)
