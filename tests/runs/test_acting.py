"""The choke point, against real calls to an emulated provider: once per confirmation, recorded before and after."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from bruno.errors import Denied
from bruno.fleet.errors import FactsChanged, OfferGone, OutcomeUnknown, RentedButStopped
from bruno.fleet.waits import wait_running
from bruno.guard.actions import DestroyInstance, StopInstance, Target
from bruno.guard.plan import Plan, Step, lifetime
from bruno.runs import acting
from bruno.runs.acting import perform, settle, settle_all
from bruno.runs.world import World
from bruno.sandbox.thread import RunningSandbox
from tests.runs.conftest import confirm, make_plan, make_world


def rent(world: World, name: str = "bruno-demo-1") -> int:
    plan = make_plan(world, name)
    return int(str(perform(plan.steps[1].action, confirm(plan), world, run_id=name)["instance_id"]))


def ending(world: World, instance_id: int, kind: type = StopInstance, **changes: object) -> Plan:
    shown = wait_running(world.vast, instance_id, minutes=1, poll_seconds=0.2)
    fields = {"instance_id": instance_id, "label": shown.label, "ssh_port": shown.ssh_port, **changes}
    created, expires = lifetime(world.clock())
    step = Step(action=kind(target=Target(**fields)))
    return Plan(title="end it", steps=(step,), created_at=created, expires_at=expires)


def rows(sandbox: RunningSandbox) -> dict[int, str]:
    return {row["id"]: row["stage"] for row in sandbox.control.overview()["instances"]}


def test_a_confirmation_rents_once(world: World, sandbox: RunningSandbox) -> None:
    plan = make_plan(world)
    permit, create = confirm(plan), plan.steps[1].action
    result = perform(create, permit, world, run_id="r")
    with pytest.raises(Denied, match="before"):
        perform(create, permit, world)
    with pytest.raises(Denied, match="before"):
        perform(create, confirm(plan), world)
    assert list(rows(sandbox)) == [result["instance_id"]]
    (act,) = world.records.acts()
    assert (act.outcome, act.result, act.run_id) == ("done", result, "r")
    row = world.records.instance(int(str(result["instance_id"])))
    assert row is not None
    assert (row.label, row.gpu, row.disk_gb, row.rented_at is not None) == ("bruno-demo-1", "H200", 40, True)


def test_a_second_installation_of_the_records_is_refused_by_the_first(world: World, tmp_path: Path) -> None:
    plan = make_plan(world)
    other = make_world(tmp_path / "home", "http://127.0.0.1:1", "key-of-another-console")
    perform(plan.steps[0].action, confirm(plan), world)
    with pytest.raises(Denied, match="before"):
        perform(plan.steps[1].action, confirm(plan), other)


def test_a_permit_for_another_plan_or_an_old_one_does_nothing(world: World, sandbox: RunningSandbox) -> None:
    plan, other = make_plan(world), make_plan(world, "bruno-demo-2")
    with pytest.raises(Denied, match="does not contain"):
        perform(plan.steps[1].action, confirm(other), world)
    permit = confirm(plan)
    late = World(world.records, world.vast, world.settings, world.paths, lambda: permit.expires_at)
    with pytest.raises(Denied, match="expired"):
        perform(plan.steps[1].action, permit, late)
    assert (rows(sandbox), world.records.acts()) == ({}, [])


def test_a_lost_reply_is_settled_by_the_label(world: World, sandbox: RunningSandbox) -> None:
    sandbox.control.order("reply_lost", operation="create")
    number = rent(world)
    assert list(rows(sandbox)) == [number]
    assert world.records.acts()[0].outcome == "done"


def test_unknown_stays_unknown_until_the_provider_tells(
    world: World, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(world)
    with monkeypatch.context() as patch:
        # The reply is lost and the list does not show the new instance yet.
        patch.setattr("bruno.fleet.acts.LOOK_AGAIN_AFTER", (0.0,))
        patch.setattr(type(world.vast), "find_by_label", lambda *_: None)
        sandbox.control.order("reply_lost", operation="create")
        with pytest.raises(OutcomeUnknown):
            perform(plan.steps[1].action, confirm(plan), world, run_id="r")
        (act,) = world.records.acts(unsettled=True)
        assert settle(act, world).outcome == "unknown"
    (number,) = rows(sandbox)
    settled = settle(act, world)
    assert (settled.outcome, settled.result) == ("done", {"instance_id": number})
    assert world.records.acts(unsettled=True) == []
    assert settle(settled, world) == settled


def test_an_act_without_a_trace_has_failed_after_its_grace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(world)
    permit = confirm(plan)
    world.records.use_permit(plan.plan_id, seal=permit.seal, origin="keyboard", minted_at=permit.minted_at)
    create = plan.steps[1].action.model_dump(mode="json")
    world.records.begin_act(plan_id=plan.plan_id, action=create, label="bruno-demo-1")
    assert [left.outcome for left in settle_all(world)] == ["unknown"]
    monkeypatch.setattr(acting, "GRACE", timedelta(0))
    assert settle_all(world) == []
    assert world.records.acts()[0].outcome == "failed"


def test_a_refusal_is_recorded_as_one(world: World, sandbox: RunningSandbox) -> None:
    plan = make_plan(world)
    sandbox.control.order("no_such_ask")
    with pytest.raises(OfferGone):
        perform(plan.steps[1].action, confirm(plan), world)
    (act,) = world.records.acts()
    assert act.outcome == "failed"
    assert "offer" in act.problem


def test_what_a_failed_rental_left_behind_is_known(world: World, sandbox: RunningSandbox) -> None:
    plan = make_plan(world)
    sandbox.control.order("refused_but_created")
    with pytest.raises(RentedButStopped):
        perform(plan.steps[1].action, confirm(plan), world)
    (number,) = rows(sandbox)
    assert (world.records.acts()[0].outcome, world.records.acts()[0].result) == ("failed", {"instance_id": number})
    assert world.records.instance(number) is not None


def test_stopping_one_leaves_the_other(world: World, sandbox: RunningSandbox) -> None:
    mine = rent(world)
    other = sandbox.control.seed(20914775, label="somebody-elses")
    plan = ending(world, mine)
    result = perform(plan.steps[0].action, confirm(plan), world)
    assert result == {"instance_id": mine, "status": "stopped"}
    assert rows(sandbox)[other] == "running"
    row = world.records.instance(mine)
    assert row is not None
    assert (row.status, row.running_since) == ("stopped", None)


@pytest.mark.parametrize("changed", [{"ssh_port": 1}, {"label": "somebody-elses"}])
def test_a_target_that_disagrees_is_not_stopped(
    world: World, sandbox: RunningSandbox, changed: dict[str, object]
) -> None:
    mine = rent(world)
    plan = ending(world, mine, **changed)
    with pytest.raises(FactsChanged):
        perform(plan.steps[0].action, confirm(plan), world)
    assert "stop" not in rows(sandbox)[mine]
    assert world.records.acts()[-1].outcome == "failed"


def test_destroying_ends_the_clocks_and_forgets_the_host_key(world: World, sandbox: RunningSandbox) -> None:
    mine = rent(world)
    plan = ending(world, mine, DestroyInstance)
    assert perform(plan.steps[0].action, confirm(plan), world)["status"] == "gone"
    assert rows(sandbox) == {}
    row = world.records.instance(mine)
    assert row is not None
    assert row.gone_at is not None
