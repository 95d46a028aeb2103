"""When a person reports that something is wrong: the report written down, every source asked, all of it side by side.

Reads the machine and the provider; writes only records. Nothing here says that all is well: it says who says what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bruno.errors import BrunoError
from bruno.guard.holds import Hold, about
from bruno.guard.sanitise import safe_line
from bruno.runs.evidence import Evidence, Item, gather
from bruno.runs.home import read_home

if TYPE_CHECKING:
    from bruno.fleet.host import Host
    from bruno.fleet.models import Instance
    from bruno.records import Concern, Records, Run
    from bruno.runs.world import World

TAIL_LINES = 3
PROCESSES = 5


def active_holds(records: Records) -> tuple[Hold, ...]:
    """The concerns that stop new acts now."""
    return tuple(hold_of(row) for row in records.concerns(held=True))


def hold_of(row: Concern) -> Hold:
    """A held concern as the guard knows it."""
    return Hold(int(row.concern_id or 0), row.run_id, row.instance_id, tuple(row.words), tuple(row.evidence))


def report(world: World, run: Run, words: str) -> Concern:
    """Write down what the person says about this run. Done before anything is asked, so that a silent machine loses no word."""
    world.records.observe(
        source="person", subject="trouble", value=words, run_id=run.run_id, instance_id=run.instance_id
    )
    return world.records.raise_concern(run.run_id, words=words, about=about(words), instance_id=run.instance_id)


def investigate(
    world: World, run: Run, concern: Concern, instance: Instance | None, host: Host | None, problem: str = ""
) -> Evidence:
    """Ask every source and keep what each says with the concern.

    Args:
        instance: as the provider shows it now; None: it shows none, or could not be asked (`problem`).
        host: an open link to the machine; None: it could not be reached.
    """
    evidence = gather(world, run, host)
    items = (*evidence.items, *_provider(instance, problem), *_processes(host), *_tail(world, run))
    world.records.note_evidence(int(concern.concern_id or 0), [worded(item) for item in items])
    return replace(evidence, items=items)


def worded(item: Item) -> str:
    """One item in a line: `process_running yes (process; process 4711)`."""
    value = {None: "unknown", True: "yes", False: "no"}.get(item.value, item.value)  # type: ignore[call-overload]
    note = f"; {item.note}" if item.note else ""
    return str(safe_line(f"{item.name.replace('_', ' ')} {value} ({item.source}{note})", 300))


def _provider(instance: Instance | None, problem: str) -> Iterator[Item]:
    if instance is None:
        yield Item("provider_status", None, "provider", problem or "it shows no such instance")
        return
    yield Item("provider_status", instance.state.value, "provider", f"to be {instance.intended_status or 'unknown'}")
    busy = instance.raw.get("gpu_util")
    known = isinstance(busy, int | float) and not isinstance(busy, bool)
    yield Item("gpu_percent", float(busy) if known else None, "provider", "its own measure, minutes old")  # type: ignore[arg-type]


def _processes(host: Host | None) -> Iterator[Item]:
    """The busiest lines of the machine's process table."""
    if host is None:
        yield Item("processes", None, "process table", "the machine could not be reached")
        return
    try:
        done = host.run(["ps", "-eo", "pid,etime,pcpu,args", "--sort=-pcpu"], timeout=20)
    except BrunoError as error:
        yield Item("processes", None, "process table", str(safe_line(error.message, 200)))
        return
    lines = done.stdout.splitlines()[1 : PROCESSES + 1] if done.ok else []
    if not lines:
        yield Item("processes", None, "process table", "ps gave no answer")
    for line in lines:
        yield Item("process", str(safe_line(line, 120)), "process table")


def _tail(world: World, run: Run) -> Iterator[Item]:
    reading = read_home(world.paths.runs / run.run_id)
    at = f"as of {reading.read_at:%H:%M} UTC" if reading.read_at else "never read"
    lines = [line for line in reading.tail if line.strip()][-TAIL_LINES:]
    if not lines:
        yield Item("log_line", None, "log", at)
    for line in lines:
        yield Item("log_line", str(safe_line(line, 160)), "log", at)
