"""Money: what a run has cost, costs per hour, will cost, and goes on costing once it is stopped. US dollars.

Arithmetic only: rows of `records` and prices in, figures out. What is not known stays None.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.records import InstanceRecord


@dataclass(frozen=True)
class Money:
    """What one instance costs. None: unknown."""

    spent: float | None
    """Since it was rented: GPU and disk while running, the disk alone otherwise. Transfer is billed on top, by the provider."""
    per_hour: float | None
    """Now: the full price while running, the disk alone when stopped, 0 once it is gone."""
    stopped_per_day: float | None
    """What its disk costs per day once stopped."""


@dataclass(frozen=True)
class Estimate:
    """How long a run takes and what it costs, with the line of arithmetic and where the constants come from."""

    hours: float | None
    total: float | None
    arithmetic: tuple[str, ...]
    basis: str


def money(instance: InstanceRecord | None, now: datetime) -> Money:
    """The figures of one recorded instance at `now`."""
    raise NotImplementedError


def estimate(
    *,
    model: str,
    size_class: str,
    weights_gb: float,
    trials: int,
    dph_total: float | None,
    download_mbps: float | None,
    hours: float = 0.0,
) -> Estimate:
    """Time and price of a whole run, from setup to the model at home.

    Args:
        model: hub id or `demo`. size_class: such as "32B". weights_gb: size of the weight files (10^9 bytes).
        trials: trials of the search. dph_total: $/h with disk. download_mbps: the offer's line, megabits per second.
        hours: a measured duration of a default run, when the alias names one; it then decides.
    """
    raise NotImplementedError
