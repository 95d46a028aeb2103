"""A run's folder at home, read on from where the last reading ended, so that a poll costs what is new. Reads files only.

    <state>/runs/<run id>/  plan.json  config.toml  engine.log  events.jsonl

Every view of a run (console, `bruno progress`, `--json`) and the runner itself are drawn from this one reading; `tail` is
what brings the files here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from bruno.runs.progress import Progress, TrialResult
from bruno.runs.readers import EventReader, LogReader
from bruno.runs.tail import mark_of

LOG, EVENTS = "engine.log", "events.jsonl"
TAIL_LINES = 500


@dataclass(frozen=True)
class HomeReading:
    """A run as its own files at home tell it."""

    progress: Progress
    """The human log's story; the events' when there is no log."""
    log: Progress
    events: Progress
    tail: tuple[str, ...] = ()
    """The log's last lines, not yet sanitised."""
    lines: int = 0
    """How many lines the log has had so far."""
    read_at: datetime | None = None
    """When the machine's log was last asked (or, for a log made here, written); None when there is none yet."""

    @property
    def trials(self) -> tuple[TrialResult, ...]:
        return self.progress.history


class HomeLog:
    """One folder's readers and how far they are. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        self._start_over()

    def read(self) -> HomeReading:
        """Everything the files say, reading only what was added since the last call."""
        with self._lock:
            if any(self._replaced(name) for name in (LOG, EVENTS)):
                self._start_over()
            lines = self._log.feed(self._new(LOG))
            self._tail.extend(lines)
            self._lines += len(lines)
            self._events.feed(self._new(EVENTS))
            log, events = self._log.progress, self._events.progress
            told = log if log.state != "silent" else events
            return HomeReading(told, log, events, tuple(self._tail), self._lines, self._read_at())

    def _start_over(self) -> None:
        self._log, self._events = LogReader(), EventReader()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lines = 0
        self._offsets = {LOG: 0, EVENTS: 0}
        self._inodes: dict[str, int] = {}

    def _replaced(self, name: str) -> bool:
        try:
            about = (self.folder / name).stat()
        except FileNotFoundError:
            return self._offsets[name] > 0
        return about.st_size < self._offsets[name] or self._inodes.setdefault(name, about.st_ino) != about.st_ino

    def _new(self, name: str) -> bytes:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(self._offsets[name])
                data = file.read()
        except FileNotFoundError:
            return b""
        self._offsets[name] += len(data)
        return data

    def _read_at(self) -> datetime | None:
        for path in (mark_of(self.folder / LOG), self.folder / LOG):
            if path.exists():
                return datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return None


_logs: dict[Path, HomeLog] = {}
_logs_lock = Lock()


def read_home(folder: Path) -> HomeReading:
    """The reading of `folder`; one set of readers a folder is kept for the life of the process."""
    with _logs_lock:
        log = _logs.setdefault(folder.absolute(), HomeLog(folder))
    return log.read()
