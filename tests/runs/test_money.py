"""Money: never too little, never invented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bruno.records import InstanceRecord
from bruno.runs.money import Money, estimate, money

START = datetime(2026, 1, 1, tzinfo=UTC)


def instance(**fields: object) -> InstanceRecord:
    known = {"instance_id": 1, "label": "x", "rented_at": START, "dph_total": 2.5, "disk_per_hour": 0.5}
    return InstanceRecord(**{**known, **fields})


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


@pytest.mark.parametrize(
    ("fields", "hours", "expected"),
    [
        # loading: the disk alone was billed, the next hour may be the whole price
        ({}, 1, Money(0.5, 2.5, 12.0)),
        ({"running_since": at(1)}, 3, Money(3 * 0.5 + 2 * 2.0, 2.5, 12.0)),
        ({"running_seconds": 3600.0, "stopped_at": at(1)}, 10, Money(10 * 0.5 + 2.0, 0.5, 12.0)),
        ({"running_seconds": 3600.0, "running_since": at(4)}, 5, Money(2.5 + 4.0, 2.5, 12.0)),
        ({"running_seconds": 3600.0, "stopped_at": at(1), "gone_at": at(2)}, 10, Money(1.0 + 2.0, 0.0, 0.0)),
        ({"disk_per_hour": None, "running_since": at(1)}, 2, Money(5.0, 2.5, None)),
        ({"dph_total": None}, 2, Money(None, None, 12.0)),
        ({"rented_at": None, "running_since": at(0)}, 2, Money(None, 2.5, 12.0)),
        ({"running_since": at(5)}, 1, Money(0.5, 2.5, 12.0)),
    ],
)
def test_figures(fields: dict[str, object], hours: float, expected: Money) -> None:
    found = money(instance(**fields), at(hours))
    assert (found.spent, found.per_hour, found.stopped_per_day) == pytest.approx(
        (expected.spent, expected.per_hour, expected.stopped_per_day)
    )


def test_an_instance_nobody_saw_costs_an_unknown_amount() -> None:
    assert money(None, START) == Money(None, None, None)
    assert str(money(None, START)) == "an unknown amount so far, an unknown price now"


def test_a_class_nobody_timed_has_no_estimate() -> None:
    found = estimate(model="x/y", size_class="900B", weights_gb=1800, trials=9, dph_total=2.0, download_mbps=500)
    assert (found.hours, found.total) == (None, None)
    assert "not timed" in found.basis or "was timed yet" in found.basis


def test_an_estimate_shows_its_arithmetic() -> None:
    found = estimate(model="x/y", size_class="32B", weights_gb=65.5, trials=200, dph_total=2.0, download_mbps=1000)
    assert found.hours is not None
    assert found.total == pytest.approx(found.hours * 2.0)
    assert any("200 trials x" in line for line in found.arithmetic)
    assert found.basis
    slower = estimate(model="x/y", size_class="32B", weights_gb=65.5, trials=200, dph_total=2.0, download_mbps=100)
    assert slower.hours is not None
    assert slower.hours > found.hours
    told = estimate(model="x/y", size_class="", weights_gb=1, trials=200, dph_total=None, download_mbps=None, hours=1.5)
    assert (told.hours, told.total) == (1.5, None)
