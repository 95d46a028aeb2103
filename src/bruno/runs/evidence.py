"""What is known, right now, about a run on its machine: asked before an instance is stopped, and when a person reports trouble.

Each item names its source. A source that cannot answer gives None, which is unknown and never counts as fine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from bruno.errors import BrunoError
from bruno.fleet import jobs
from bruno.fleet.jobs import JobPhase
from bruno.guard.disk import GB
from bruno.guard.sanitise import safe_line
from bruno.records.tables import StepState
from bruno.runs.compare import compare
from bruno.runs.home import read_home
from bruno.runs.job import Places, bring_all, how_it_ended

if TYPE_CHECKING:
    from bruno.fleet.host import Host
    from bruno.records import Run
    from bruno.runs.progress import Progress
    from bruno.runs.world import World

T = TypeVar("T")
Value = str | int | float | bool | None
COMPLETE = "trials_complete"
STUDY = "study.sqlite3"
"""The engine's own name for the study in its run folder; a test holds the two together."""
_COUNT = """
import sqlite3, sys
from urllib.parse import quote
study = sqlite3.connect("file:" + quote(sys.argv[1]) + "?mode=ro", uri=True, timeout=5)
(studies,) = study.execute("SELECT COUNT(*) FROM studies").fetchone()
(trials,) = study.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
print(studies, trials)
"""


@dataclass(frozen=True)
class Item:
    """One fact as one source tells it."""

    name: str
    """A fact name: process_running, model_saved, trial, trials, trials_complete, disk_free_gb, label_file, ..."""
    value: Value
    source: str
    """process, log, events, study, disk, host, provider, records."""
    note: str = ""
    """Why it is unknown, or what it rests on."""


@dataclass(frozen=True)
class Evidence:
    """The facts gathered at one moment, and where two sources disagree."""

    run_id: str
    at: datetime
    items: tuple[Item, ...]
    progress: Progress | None = None
    disagreements: tuple[str, ...] = field(default=())

    def value(self, name: str) -> Value:
        """The value of `name` when all sources that know it agree; None when unknown or disputed."""
        values = {item.value for item in self.items if item.name == name and item.value is not None}
        return values.pop() if len(values) == 1 else None

    @property
    def kills(self) -> str:
        """What ends with the instance, in one phrase: "the engine at trial 57 of 200; no model saved"."""
        running, saved = self.value("process_running"), self.value("model_saved")
        trial, trials = self.value("trial"), self.value("trials")
        place = f" at trial {trial} of {trials}" if trial is not None and trials is not None else ""
        engine = {
            True: f"the engine{place}",
            False: f"nothing: the engine does not run{place and f', it ended{place}'}",
        }
        model = {True: "the model is saved on its disk", False: "no model saved"}
        home = " and at home" if self.value("model_home") else ""
        words = [
            engine.get(running, f"whether the engine runs is unknown{place and f' (last seen{place})'}"),  # type: ignore[call-overload]
            model.get(saved, "whether a model was saved is unknown") + (home if saved else ""),  # type: ignore[call-overload]
        ]
        return "; ".join(words)


def gather(world: World, run: Run, host: Host | None) -> Evidence:
    """Ask the machine (job, log, disk, label file) and the records. `host` None: it could not be reached.

    Never raises for a silent machine: what could not be read is an item with value None and the reason in its note.
    """
    home = world.paths.runs / run.run_id
    places = _ask("workspace", "host", host, lambda there: Places.of(there, run.run_id))
    fresh = isinstance(places, Places) and not isinstance(
        _ask("log", "log", host, lambda there: bring_all(there, places, home)), Item
    )
    reading = read_home(home)
    age = "" if fresh else f"as of {reading.read_at:%H:%M} UTC" if reading.read_at else "never read"
    items = [
        _process(world, run, host, places),
        *_saved(run, host, reading.log, reading.events, age),
        *_trials(reading.log, "log", age),
        *_trials(reading.events, "events", age),
        *_complete(run, host, places, reading.log, reading.events, age),
        _disk(host, places),
        _asked("label_file", "host", host, lambda there: there.identify()),
        Item("model_home", run.local_model is not None, "records", run.local_model or ""),
    ]
    found = compare(reading.log, reading.events, at_rest=False)
    known = [
        f"{row.subject}: {row.source} {row.said}, {row.other_source} {row.against}"
        for row in world.records.discrepancies(run.run_id)
    ]
    moving = items[0].value is not False
    lines = dict.fromkeys([*known, *(str(item) for item in found), *_disputes(items, moving=moving)])
    return Evidence(
        run.run_id, world.clock(), tuple(items), reading.progress, tuple(str(safe_line(line, 400)) for line in lines)
    )


def _process(world: World, run: Run, host: Host | None, places: object) -> Item:
    steps = {row.name: row for row in world.records.steps(run.run_id)}
    launch = steps.get("launch")
    if launch is None or (launch.state == StepState.PENDING.value and not launch.attempts):
        return Item("process_running", False, "records", "the engine was not launched yet")
    if not isinstance(places, Places):
        return Item("process_running", None, "process", "the machine could not be asked")

    def ask(there: Host) -> Item:
        state = jobs.state(there, places.job)
        if state.phase is JobPhase.UNKNOWN:
            return Item("process_running", None, "process", state.detail)
        running = state.phase is JobPhase.RUNNING
        note = (
            f"process {state.pid}"
            if running
            else "never launched"
            if state.phase is JobPhase.ABSENT
            else how_it_ended(state)
        )
        return Item("process_running", running, "process", note)

    answer = _ask("process_running", "process", host, ask)
    return answer if isinstance(answer, Item) else Item("process_running", None, "process", "no answer")


def _saved(run: Run, host: Host | None, log: Progress, events: Progress, age: str) -> list[Item]:
    """Whether a model was saved: by the log, by the events, and by looking at the disk where they say it is."""
    items = []
    for seen, source in ((log, "log"), (events, "events")):
        known = seen.state != "silent"
        note = "; ".join(part for part in (seen.model_saved or "", age) if part)
        items.append(Item("model_saved", seen.model_saved is not None if known else None, source, note))
    path = log.model_saved or events.model_saved or run.remote_model
    if path is not None:
        items.append(_asked("model_saved", "disk", host, lambda there: there.exists(f"{path}/config.json")))
    return items


def _trials(seen: Progress, source: str, age: str) -> list[Item]:
    return [Item("trial", seen.trial, source, age), Item("trials", seen.trials, source, age)]


def _complete(run: Run, host: Host | None, places: object, log: Progress, events: Progress, age: str) -> Iterator[Item]:
    """How many trials were scored, by the log, by the events, and by the study's own table. Its values are never read."""
    for seen, source in ((log, "log"), (events, "events")):
        yield Item(COMPLETE, seen.completed if seen.state != "silent" else None, source, age)
    if run.settings.get("search", {}).get("storage"):
        yield Item(COMPLETE, None, "study", "the study is kept in a storage of its own, which bruno does not open")
    elif not isinstance(places, Places):
        yield Item(COMPLETE, None, "study", "the machine could not be asked")
    else:
        study = f"{places.out}/{STUDY}"
        answer = _ask(COMPLETE, "study", host, lambda there: _count(there, study))
        yield answer if isinstance(answer, Item) else Item(COMPLETE, None, "study", "no answer")


def _count(host: Host, path: str) -> Item:
    """Trials in state COMPLETE in the study's SQLite file, opened for reading alone by the machine's own Python."""
    done = host.run(["python3", "-c", _COUNT, path], timeout=20)
    words = done.stdout.split()
    if done.ok and len(words) == 2 and words[0] == "1" and words[1].isdigit():
        return Item(COMPLETE, int(words[1]), "study", path)
    if done.ok and words[:1] not in ([], ["1"]):
        return Item(COMPLETE, None, "study", "the file holds no study, or several")
    return Item(COMPLETE, None, "study", "there is no study file that can be read (yet)")


def _disk(host: Host | None, places: object) -> Item:
    def free(there: Host) -> float | None:
        room = there.free_disk(places.root if isinstance(places, Places) else "/")
        return None if room is None else round(room / GB, 1)

    return _asked("disk_free_gb", "disk", host, free)


def _asked(name: str, source: str, host: Host | None, do: Callable[[Host], Value]) -> Item:
    answer = _ask(name, source, host, do)
    return answer if isinstance(answer, Item) else Item(name, answer, source)


def _ask(name: str, source: str, host: Host | None, do: Callable[[Host], T]) -> T | Item:
    """What `do` gives, or an item that says why it is unknown."""
    if host is None:
        return Item(name, None, source, "the machine could not be reached")
    try:
        return do(host)
    except BrunoError as error:
        return Item(name, None, source, str(safe_line(error.message, 200)))


def _disputes(items: list[Item], *, moving: bool) -> list[str]:
    """Facts of which two sources say different things.

    Args:
        moving: the engine runs, or may: then the study is simply read a moment before the log, and may be a trial behind.
    """
    lines = []
    for name in dict.fromkeys(item.name for item in items if not (moving and item.name == COMPLETE)):
        said = [item for item in items if item.name == name and item.value is not None]
        if len({item.value for item in said}) > 1:
            lines.append(
                f"{name.replace('_', ' ')}: " + ", ".join(f"the {item.source} says {item.value}" for item in said)
            )
    return lines
