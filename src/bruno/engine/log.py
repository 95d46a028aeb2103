"""The one writer of the engine's log: human lines to a stream, and the same events as JSON lines to a file.

Touches: the stream it is given, and `events.jsonl` in the run's folder. Every event is flushed before `emit` returns
and the file is only ever appended to, so a killed process loses nothing it said; a line cut short by the kill is closed
off by the next start.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from bruno.engine.events import _Event
from bruno.settings.secrets import redact

EVENTS_FILE = "events.jsonl"


class Emitter:
    """Call it with an event: `emit(Notice(text="..."))`.

    Args:
        folder: the run's folder; `events.jsonl` is appended to there. None writes human lines only.
        stream: where the human lines go; standard output when not given.

    Control characters in an event's text (they can come from model names and library errors) are shown escaped, so one
    event line is one line of the log. Secrets, and what is shaped like one, are redacted in both. Threads may share it.
    """

    def __init__(self, folder: Path | None, stream: IO[str] | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self._file: int | None = None
        self._cut = False
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / EVENTS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._file).st_size
            self._cut = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def __call__(self, event: _Event) -> None:
        """Write the event to both places.

        Raises:
            OSError: the file cannot be written (a full disk). The human line is out by then, so the reason can be read.
        """
        text = "".join(redact(one_line(line)) + "\n" for line in event.lines())
        stored = redact(event.model_dump_json(exclude_none=True)).encode() + b"\n"
        with self._lock:
            self._write(text, stored)

    def _write(self, text: str, stored: bytes) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            # Whoever read the lines is gone (a dropped SSH session). With a file to write to, the work is worth more
            # than the reader.
            if self._file is None:
                raise
            self.stream = io.StringIO()
        if self._file is not None:
            self._append(self._file, stored)

    def _append(self, file: int, line: bytes) -> None:
        """Append a whole line; after a crash or a full disk cut one short, end that one first."""
        rest = b"\n" + line if self._cut else line
        self._cut = True
        while rest:
            rest = rest[os.write(file, rest) :]
        self._cut = False

    def close(self) -> None:
        """Close the file; later events would go to the stream only."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Emitter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def keep_warnings(file: Path | None) -> None:
    """Have libraries' warnings go to a file instead of the screen; nowhere when None."""
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(
        logging.FileHandler(file, delay=True) if file else logging.NullHandler()
    )


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters escaped (`\\n`, `\\x1b`): one record stays one line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str) -> str:
    """`text` for a screen: line breaks and tabs kept, every other control character escaped. For models' answers."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
