"""Money: what a run has cost, costs per hour, will cost, and goes on costing once it is stopped. US dollars.

Arithmetic only: rows of `records` and prices in, figures out. What is not known stays None.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bruno.runs.constants import constants

if TYPE_CHECKING:
    from bruno.records import InstanceRecord


@dataclass(frozen=True)
class Money:
    """What one instance costs. None: unknown."""

    spent: float | None
    """Since it was rented, never too little: GPU and disk while it ran, the disk alone otherwise. Transfer is billed on top."""
    per_hour: float | None
    """Now: the full price while it runs, the disk alone when it is stopped, 0 once it is gone."""
    stopped_per_day: float | None
    """What its disk costs per day once it is stopped."""

    def __str__(self) -> str:
        spent = "an unknown amount" if self.spent is None else f"${self.spent:.2f}"
        rate = "an unknown price" if self.per_hour is None else f"${self.per_hour:.3f}/h"
        return f"{spent} so far, {rate} now"


@dataclass(frozen=True)
class Estimate:
    """How long a run takes and what it costs, with the lines of arithmetic and where the constants come from."""

    hours: float | None
    total: float | None
    arithmetic: tuple[str, ...]
    basis: str


def money(instance: InstanceRecord | None, now: datetime) -> Money:
    """The figures of one recorded instance at `now`. An instance that was never seen has unknown ones."""
    if instance is None:
        return Money(None, None, None)
    total, disk = instance.dph_total, instance.disk_per_hour
    per_day = None if disk is None else disk * 24
    running = instance.running_since is not None
    per_hour = 0.0 if instance.gone_at else total if running or instance.stopped_at is None else disk
    return Money(_spent(instance, now), per_hour, 0.0 if instance.gone_at else per_day)


def _spent(instance: InstanceRecord, now: datetime) -> float | None:
    if instance.rented_at is None or instance.dph_total is None:
        return None
    end = instance.gone_at or now
    if instance.disk_per_hour is None:
        # Without the disk's own price the whole one is counted from the start: never too little.
        return _hours(end - instance.rented_at) * instance.dph_total
    seconds = instance.running_seconds
    if instance.running_since is not None:
        seconds += max(0.0, (end - instance.running_since).total_seconds())
    gpu = max(0.0, instance.dph_total - instance.disk_per_hour)
    return _hours(end - instance.rented_at) * instance.disk_per_hour + seconds / 3600 * gpu


def _hours(span: Any) -> float:
    return max(0.0, span.total_seconds()) / 3600


def estimate(
    *,
    model: str,
    size_class: str,
    weights_gb: float,
    trials: int,
    dph_total: float | None,
    download_mbps: float | None,
    hours: float = 0.0,
    gpu: str = "",
    workers: int = 1,
) -> Estimate:
    """Time and price of a whole run, from setup to the model at home.

    Args:
        model: hub id or `demo`. size_class: such as "32B" ("": by the weights).
        weights_gb: size of the weight files, 10^9 bytes.
        trials: trials of the search. dph_total: $/h with disk. download_mbps: the offer's line, megabits per second.
        hours: a measured duration of a default run, when the alias names one; it then decides.
        gpu: settings' name of the GPU; a timing of other GPUs does not stand for it. "" asks for none.
        workers: how many search at once; the trials are shared out to them, the rest is not.

    Returns:
        `hours` None when nothing was ever measured for such a model: no figure is better than an invented one.
    """
    if hours > 0 and workers == 1:
        return _priced(hours, (f"{hours:g} h, as the settings say for {model}",), "[models] hours", dph_total)
    figures = constants()
    known = figures.timed(size_class, weights_gb)
    if known is None:
        return Estimate(None, None, (), f"no run of class {size_class or 'unknown'} was timed yet")
    if gpu and gpu.casefold() not in known.gpus:
        return Estimate(None, None, (), f"unknown on {gpu.upper()}: class {known.size_class} was not timed on one yet")
    setup, home = figures.setup_minutes.value / 60, figures.home_mbps.value
    parts = [(setup, f"{setup * 60:.0f} min to install and load")]
    if model != "demo":
        line = min(download_mbps or home, figures.hub_mbps.value)
        parts.append(_copied(weights_gb, line, "from the hub"))
        parts.append(_copied(weights_gb, home, "home"))
    search = trials * known.seconds / 3600 / workers
    shared = f" / {workers} workers" if workers > 1 else ""
    parts.append((search, f"{trials} trials x {known.seconds:g} s{shared} = {search:.2f} h"))
    return _priced(sum(part for part, _ in parts), tuple(line for _, line in parts), known.source, dph_total)


def _copied(weights_gb: float, mbps: float, where: str) -> tuple[float, str]:
    spent = weights_gb * 8000 / mbps / 3600
    return spent, f"{weights_gb:g} GB {where} at {mbps:.0f} Mb/s = {spent:.2f} h"


def _priced(hours: float, lines: tuple[str, ...], basis: str, dph: float | None) -> Estimate:
    total = None if dph is None else hours * dph
    if dph is not None:
        lines = (*lines, f"{hours:.2f} h x ${dph:.3f}/h = ${total:.2f}")
    return Estimate(hours, total, lines, basis)
