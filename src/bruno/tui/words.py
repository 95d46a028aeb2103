"""Views as plain words: money, durations, counts, one line for a run. Pure, and shared with the command line.

Unknown is said as `unknown`, never drawn as 0 or left out. All text passes the sanitiser here once more, because the names in
a view come from a provider, a host or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from bruno.guard.sanitise import SafeText, safe, safe_line

if TYPE_CHECKING:
    from bruno.operator.views import InstancesView, InstanceView, OfferView, RunView, WorkerView

UNKNOWN = "unknown"
_GLYPHS = {"running": "▶", "stopped": "■", "failed": "✘", "lost": "✘", "unknown": "?"}


def money(dollars: float | None, unit: str = "") -> str:
    """`$1.23` or `$3.410/h`; small sums keep three digits that mean something."""
    if dollars is None:
        return UNKNOWN
    digits = 2 if not unit and abs(dollars) >= 1 else 3
    return f"${dollars:.{digits}f}{unit}"


def duration(seconds: float | None) -> str:
    """`1h 3m`, `5m 2s`, `12s`: as the engine's own log writes it."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"


def age(then: datetime | None, now: datetime) -> str:
    """How long ago a reading was made."""
    return "never read" if then is None else f"{duration((now - then).total_seconds())} ago"


def refusals(pair: tuple[int, int] | None) -> str:
    """Raw counts, `13/104`, never a ratio."""
    return UNKNOWN if pair is None else f"{pair[0]}/{pair[1]}"


def trial(run: RunView) -> str:
    """`trial 5 of 20`, or what is known of it."""
    if run.trial is None:
        return "no trial yet"
    if run.workers:
        return f"{run.trial} of {run.trials if run.trials is not None else UNKNOWN} trials"
    return f"trial {run.trial} of {run.trials if run.trials is not None else UNKNOWN}"


def state(run: RunView) -> SafeText:
    """Glyph and word: never colour alone."""
    return safe_line(f"{run.state.glyph} {run.state.value}")


def instance_state(instance: InstanceView) -> SafeText:
    """The provider's status with a glyph, and what is intended where it differs."""
    status = instance.status or UNKNOWN
    wanted = f" (to be {instance.intended})" if instance.intended and instance.intended != status else ""
    return safe_line(f"{_GLYPHS.get(status, '…')} {status}{wanted}")


def run_line(run: RunView) -> SafeText:
    """A run in one line, for lists, logs and plain terminals."""
    parts = [f"{run.state.glyph} {run.name} {run.state.value}"]
    if run.step and run.step != run.state.value:
        parts.append(run.step)
    if run.trial is not None:
        parts.append(trial(run))
    if run.initial or run.last or run.best:
        parts.append(f"refusals {counts(run)}")
    if run.elapsed_seconds is not None:
        parts.append(f"{duration(run.elapsed_seconds)} so far")
    if run.remaining_seconds is not None and run.state.live:
        parts.append(f"{duration(run.remaining_seconds)} remaining")
    parts.append(f"{money(run.spent)} so far")
    if run.per_hour is not None:
        parts.append(f"now {money(run.per_hour, '/h')}")
    if run.local_model:
        parts.append(f"model at {run.local_model}")
    return safe_line(" · ".join(parts), 1_000)


def worker_lines(run: RunView) -> tuple[SafeText, ...]:
    """A line for each instance of a run over several, the first of which makes the model; what went wrong stands last."""
    return tuple(
        safe(_worker_line(worker)) for worker in run.workers
    )  # its columns are blanks, which safe_line takes out


def _worker_line(worker: WorkerView) -> str:
    where = "not rented" if worker.instance_id is None else str(worker.instance_id)
    state = f"{worker.state.glyph} {worker.state.value}"
    scored = f"{worker.scored} {'trial' if worker.scored == 1 else 'trials'}"
    last = f", last {worker.last.refusals}/{worker.last.prompts}" if worker.last else ""
    rate = money(worker.per_hour, "/h") if worker.instance_id is not None else "-"
    role = "  makes the model" if worker.number == 1 and not worker.problem else ""
    line = f"worker {worker.number}  {state:<14} {where:<10} {scored + last:<21} {rate}"
    return f"{line.rstrip()}{role}" + (f"  ✘ {safe_line(worker.problem, 300)}" if worker.problem else "")


def run_notes(run: RunView) -> tuple[SafeText, ...]:
    """What has to be said of a run below its line: what went wrong, and where sources disagree."""
    notes = [f"✘ {run.problem}"] if run.problem else []
    return tuple(safe_line(note, 1_000) for note in (*notes, *(f"! discrepancy: {text}" for text in run.discrepancies)))


def counts(run: RunView) -> str:
    """Refusals at the start, last and best, raw, with the KL of the latter two."""
    said = [f"{refusals(run.initial)} at the start"]
    for name, view in (("last", run.last), ("best", run.best)):
        if view is not None:
            kl = f" at KL {view.kl:.3g}" if view.kl is not None else ""
            said.append(f"{name} {view.refusals}/{view.prompts}{kl} (trial {view.number})")
    return ", ".join(said + uncounted(run))


def uncounted(run: RunView) -> list[str]:
    """Trials that are over and have no count, and why."""
    each = ((run.stopped_trials, "stopped as beaten"), (run.failed_trials, "failed"))
    return [f"{number} {why}" for number, why in each if number]


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.0f}%"


def disk(instance: InstanceView) -> str:
    if instance.disk_gb is None:
        return UNKNOWN
    used = "?" if instance.disk_used_gb is None else f"{instance.disk_used_gb:.0f}"
    return f"{used}/{instance.disk_gb:.0f} GB"


INSTANCE_HEADS = ("state", "id", "now", "label", "GPU", "util", "disk", "stopped", "SSH", "age")
"""What costs money stands where the narrowest terminal still shows it."""


def instance_row(instance: InstanceView) -> tuple[SafeText, ...]:
    """One instance under INSTANCE_HEADS."""
    gpu = f"{instance.gpu_count} x {instance.gpu}" if instance.gpu_count > 1 else instance.gpu
    return tuple(
        safe_line(cell)
        for cell in (
            instance_state(instance),
            str(instance.instance_id),
            money(costs_now(instance), "/h"),
            (instance.label or "-") + ("" if instance.run_id else " (not bruno's)"),
            gpu,
            percent(instance.gpu_utilisation),
            disk(instance),
            money(instance.stopped_per_day, "/day"),
            instance.ssh or "-",
            duration(instance.age_seconds),
        )
    )


OFFER_HEADS = ("offer", "GPU", "memory", "price with disk", "disk", "reliability", "line", "place")


def offer_row(offer: OfferView) -> tuple[SafeText, ...]:
    """One offer under OFFER_HEADS."""
    memory = UNKNOWN if offer.gpu_memory_gb is None else f"{offer.gpu_memory_gb:.0f} GB"
    reliability = UNKNOWN if offer.reliability is None else f"{offer.reliability:.2%}"
    line = UNKNOWN if offer.download_mbps is None else f"{offer.download_mbps:.0f} Mb/s"
    cells = (
        str(offer.offer_id),
        f"{offer.gpu_count} x {offer.gpu}" if offer.gpu_count > 1 else offer.gpu,
        memory,
        money(offer.per_hour, "/h"),
        f"{offer.disk_gb:.0f} GB",
        reliability,
        line,
        offer.location,
    )
    return tuple(safe_line(cell) for cell in cells)


def spending(view: InstancesView | None) -> str:
    """What all instances cost now, as far as the list says."""
    if view is None or not view.known:
        return UNKNOWN
    prices = [costs_now(row) for row in view.rows]
    missing = prices.count(None)
    return money(sum(price or 0 for price in prices), "/h") + (f" and {missing} of unknown price" if missing else "")


def costs_now(instance: InstanceView) -> float | None:
    """$/h: the full price, or the disk alone once the instance is stopped. Anything not surely stopped counts in full."""
    if instance.status != "stopped":
        return instance.per_hour
    return None if instance.stopped_per_day is None else instance.stopped_per_day / 24


def left_running(runs: Sequence[RunView], view: InstancesView | None, *, sandbox: bool = False) -> tuple[SafeText, ...]:
    """What goes on, and what it costs, when a face lets go. Said on leaving and on Ctrl-C.

    The commands can be copied as they stand: those of a sandbox say so, or they would mean the real account.
    """
    where = " --sandbox" if sandbox else ""
    lines = [
        f"{run.name} goes on without this console ({trial(run)}, {money(run.per_hour, '/h')}). "
        f"bruno resume {run.name}{where}"
        for run in runs
        if run.state.live
    ]
    if view is None or not view.known:
        lines.append("what is running at the provider is unknown: its list was not read. bruno instances" + where)
    else:
        lines += [
            f"instance {row.instance_id} ({row.label or 'no label'}) is {row.status or UNKNOWN}: "
            f"{money(costs_now(row), '/h')}. {_how_to_end(row)}{where}"
            for row in view.rows
        ]
        if not view.rows:
            lines.append("no instance is rented: nothing costs anything")
    return tuple(safe_line(line, 400) for line in lines)


def _how_to_end(row: InstanceView) -> str:
    return f"bruno {'destroy' if row.status == 'stopped' else 'stop'} {row.instance_id}"
