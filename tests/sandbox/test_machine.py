"""The life of an instance and what it costs, to the second, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.sandbox import billing, machine
from bruno.sandbox.clock import Clock
from bruno.sandbox.offers import load_catalogue
from bruno.sandbox.state import Instance, Pace, Stage, State
from bruno.sandbox.world import Refusal, World

CATALOGUE = load_catalogue()
H200 = CATALOGUE[20871102]
BODY = {"image": "pytorch/pytorch", "disk": 720, "runtype": "ssh_direc ssh_proxy", "label": "a"}


def world(credit: float = 100.0) -> World:
    return World(State(clock=Clock.frozen(1000.0), credit=credit), CATALOGUE)


def later(of: World, seconds: float) -> None:
    of.state.clock.advance(seconds)
    of.advance()


def rented(credit: float = 100.0) -> tuple[World, Instance]:
    made = world(credit)
    made.create(H200.id, BODY)
    return made, next(iter(made.state.instances.values()))


def test_the_way_up():
    made, instance = rented()
    seen = [(instance.stage, instance.actual)]
    for _ in range(50):
        later(made, 0.1)
        if (instance.stage, instance.actual) != seen[-1]:
            seen.append((instance.stage, instance.actual))
    assert seen == [
        (Stage.PROVISIONING, None),
        (Stage.CREATED, "created"),
        (Stage.LOADING, "loading"),
        (Stage.BOOTING, "running"),
        (Stage.RUNNING, "running"),
    ]
    assert instance.since == pytest.approx(1004.5)


def test_the_way_down_and_up_again():
    made, instance = rented()
    later(made, 10)
    made.set_power(instance.id, "stopped")
    assert (instance.intended, instance.next_state, instance.cur, instance.actual) == (
        "stopped",
        "stopped",
        "running",
        "running",
    )
    later(made, 1.0)
    assert (instance.cur, instance.actual) == ("stopped", "running")
    later(made, 0.5)
    assert (instance.cur, instance.actual) == ("stopped", "exited")
    made.set_power(instance.id, "stopped")
    assert instance.stage is Stage.EXITED
    made.set_power(instance.id, "running")
    assert (instance.intended, instance.cur, instance.actual) == ("running", "running", "loading")
    later(made, 3.5)
    assert (instance.stage, instance.generation) == (Stage.RUNNING, 2)


def test_a_stop_can_be_taken_back_before_it_happens():
    made, instance = rented()
    later(made, 10)
    made.set_power(instance.id, "stopped")
    made.set_power(instance.id, "running")
    later(made, 10)
    assert (instance.stage, instance.intended, instance.generation) == (Stage.RUNNING, "running", 1)


@pytest.mark.parametrize("stage", [Stage.BROKEN, Stage.DIED, Stage.LOST, Stage.EXITED, Stage.RUNNING])
def test_some_stages_are_for_ever(stage: Stage):
    made, instance = rented(1e9)
    machine.enter(instance, stage, made.now())
    later(made, 1e6)
    assert instance.stage is stage


def test_gpu_is_billed_while_running_and_disk_always():
    made, instance = rented()
    later(made, 3.5)
    assert made.state.credit == pytest.approx(100 - H200.disk_per_hour(720) * 3.5 / 3600)
    before = made.state.credit
    later(made, 3600)
    assert before - made.state.credit == pytest.approx(H200.dph_base + H200.disk_per_hour(720))
    made.set_power(instance.id, "stopped")
    later(made, 10)
    before = made.state.credit
    later(made, 7200)
    assert before - made.state.credit == pytest.approx(2 * H200.disk_per_hour(720))


def test_an_offline_host_is_not_billed():
    made, instance = rented()
    later(made, 10)
    machine.lose_host(instance, made.now())
    before = made.state.credit
    later(made, 86_400)
    assert made.state.credit == before
    machine.regain_host(instance, made.now())
    assert instance.stage is Stage.RUNNING


def test_credit_runs_out_to_the_second():
    made, instance = rented(credit=1.0)
    later(made, 100_000)
    gpu, disk = H200.dph_base / 3600, H200.disk_per_hour(720) / 3600
    stopped = next(at for at, what in instance.events if what == "halted")
    assert stopped == pytest.approx(1000 + 3.5 + (1.0 - 3.5 * disk) / (gpu + disk))
    assert (instance.cur, instance.intended, instance.next_state, instance.actual) == (
        "stopped",
        "stopped",
        "stopped",
        "exited",
    )
    assert made.state.credit == pytest.approx(-(101_000 - stopped) * disk, rel=1e-6)
    with pytest.raises(Refusal, match="credit"):
        made.set_power(instance.id, "running")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=12),
    st.floats(0.01, 5),
    st.lists(st.sampled_from(["running", "stopped"]), min_size=12, max_size=12),
)
def test_one_jump_costs_what_many_steps_cost(steps: list[int], credit: float, wishes: list[str]):
    """The account after a jump is the account after the same time in pieces, whatever is asked in between."""
    small, one = rented(credit)
    large, other = rented(credit)
    for seconds, wish in zip(steps, wishes, strict=False):
        for _ in range(8):  # eighths of whole seconds add up exactly
            later(small, seconds / 8)
        later(large, seconds)
        for made, instance in ((small, one), (large, other)):
            if made.state.credit > 0 or wish == "stopped":
                made.set_power(instance.id, wish)
    assert small.state.credit == pytest.approx(large.state.credit, abs=1e-6)
    assert [what for _, what in one.events] == [what for _, what in other.events]
    assert sum(c.gpu_amount + c.disk_amount for c in small.state.charges) == pytest.approx(
        credit - small.state.credit, abs=1e-6
    )


def test_a_clock_that_jumps_back_bills_nothing_twice():
    made, _ = rented()
    later(made, 1000)
    credit = made.state.credit
    later(made, -500)
    later(made, 500)
    assert made.state.credit == credit


def test_charges_are_by_instance_and_day():
    made, _ = rented(1e6)
    made.create(20914775, {**BODY, "label": "b"})
    later(made, 2.5 * 86_400)
    assert [(c.instance, c.day) for c in made.state.charges] == [
        (instance, day * 86_400.0) for day in range(3) for instance in made.state.instances
    ]


def test_a_taken_offer_is_gone_or_schedules():
    made, first = rented()
    with pytest.raises(Refusal, match="no_such_ask") as refused:
        made.create(H200.id, {**BODY, "cancel_unavail": True})
    assert refused.value.status == 410
    answer = made.create(H200.id, BODY)
    waiting = made.state.instances[answer["new_contract"]]
    assert (waiting.cur, waiting.next_state) == ("stopped", "running")
    later(made, 1000)
    assert waiting.stage is Stage.EXITED
    assert first.stage is Stage.RUNNING


BAD_CREATES = [
    ({"disk": 4}, "invalid_args"),
    ({"disk": 1e6}, "invalid_args"),
    ({"disk": "big"}, "invalid_args"),
    ({"price": 500}, "invalid_price"),
    ({"image": None}, "invalid_args"),
    ({"label": "x" * 1025}, "label_too_long"),
]


@pytest.mark.parametrize(("change", "error"), BAD_CREATES, ids=str)
def test_bad_creates_leave_nothing(change: dict, error: str):
    made = world()
    with pytest.raises(Refusal) as refused:
        made.create(H200.id, {**BODY, **change})
    assert refused.value.body["error"] == error
    assert not made.state.instances


def test_a_bid_below_the_market_leaves_a_stopped_instance_that_costs():
    made = world()
    answer = made.create(H200.id, {**BODY, "price": 0.1})
    assert answer["success"] is False
    instance = made.state.instances[answer["new_contract"]]
    later(made, 3600)
    assert instance.cur == "stopped"
    assert made.state.credit == pytest.approx(100 - H200.disk_per_hour(720))


def test_progress_is_only_shown_while_loading():
    made, instance = rented()
    later(made, 2.25)
    assert "50%" in (machine.progress(instance, Pace(), made.now()) or "")
    later(made, 10)
    assert machine.progress(instance, Pace(), made.now()) == "success, running pytorch_pytorch/ssh"


def test_rates():
    made, instance = rented()
    assert billing.hourly(instance)[0] == 0
    later(made, 10)
    assert billing.hourly(instance) == (H200.dph_base, H200.disk_per_hour(720))
