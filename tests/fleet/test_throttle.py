"""The provider's intervals, kept without ever waiting longer than they demand."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bruno.fleet.throttle import INTERVALS, SEARCHES, Throttle
from tests.fleet.conftest import FakeTime


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def throttle(time: FakeTime) -> Throttle:
    return Throttle(time.clock, time.sleep)


@pytest.mark.parametrize("kind", INTERVALS)
def test_the_first_request_goes_at_once_and_the_next_waits(kind: str, time: FakeTime, throttle: Throttle) -> None:
    throttle.wait(kind)
    assert time.slept == []
    throttle.wait(kind)
    assert time.slept == [pytest.approx(INTERVALS[kind])]


def test_kinds_do_not_hold_each_other_up(time: FakeTime, throttle: Throttle) -> None:
    for kind in INTERVALS:
        throttle.wait(kind)
    assert time.slept == []


def test_time_that_passed_anyway_is_not_waited_for(time: FakeTime, throttle: Throttle) -> None:
    throttle.wait("create")
    time.now += timedelta(seconds=4)
    throttle.wait("create")
    assert time.slept == [pytest.approx(0.5)]


def test_ten_searches_a_minute(time: FakeTime, throttle: Throttle) -> None:
    for _ in range(SEARCHES):
        throttle.wait("search")
    assert time.slept == []
    throttle.wait("search")
    assert time.slept == [pytest.approx(60)]


@pytest.mark.parametrize("kind", ["create", "search"])
def test_a_clock_set_back_costs_no_long_wait(kind: str, time: FakeTime, throttle: Throttle) -> None:
    for _ in range(SEARCHES):
        throttle.wait(kind)
    time.slept.clear()
    time.now -= timedelta(hours=3)
    throttle.wait(kind)
    assert sum(time.slept) <= 60
