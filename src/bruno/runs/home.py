"""A run's log as it lies at home: read on from where the last reading ended, so that a poll costs what is new.

Reads files only. Every view of a run (console, `bruno progress`, `--json`) is drawn from this one reading.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from bruno.runs.progress import Progress
from bruno.runs.readers import LogReader

TAIL_LINES = 500


@dataclass(frozen=True)
class HomeReading:
    """What the log at home says. `read_at` is when it was last written, None when there is none yet."""

    progress: Progress
    tail: tuple[str, ...] = ()
    read_at: datetime | None = None


class HomeLog:
    """One run's log at home. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._start_over()

    def read(self) -> HomeReading:
        """Everything the file says, reading only what was added since the last call."""
        with self._lock:
            try:
                about = self.path.stat()
            except FileNotFoundError:
                return HomeReading(Progress())
            if about.st_size < self._offset or about.st_ino != self._inode:
                self._start_over()
                self._inode = about.st_ino
            if about.st_size > self._offset:
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
                self._offset += len(data)
                self._tail.extend(self._reader.feed(data))
            written = datetime.fromtimestamp(about.st_mtime, UTC)
            return HomeReading(self._reader.progress, tuple(self._tail), written)

    def _start_over(self) -> None:
        self._reader, self._offset, self._inode = LogReader(), 0, -1
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)


_logs: dict[Path, HomeLog] = {}
_logs_lock = Lock()


def read_home(folder: Path) -> HomeReading:
    """The reading of `folder/engine.log`; one reader a file is kept for the life of the process."""
    path = folder / "engine.log"
    with _logs_lock:
        log = _logs.setdefault(path, HomeLog(path))
    return log.read()
