"""What a shell line prints while it runs, when it has to end, and how it ended. The text is hostile until sanitised."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Literal

Stream = Literal["stdout", "stderr"]
Hear = Callable[[Stream, str], None]
"""Called with each line as it comes, without its newline."""
OUTPUT_LIMIT = 1 << 20
"""Bytes of each stream that are heard; the rest is read and dropped, so that the command does not block."""
LONGEST_LINE = 8192
POLL_SECONDS = 0.05
END_SECONDS = 5.0
"""What a command that is told to end is given before it is killed."""
DRAIN_SECONDS = 0.5
"""How long output is still waited for once the command has ended: a process it left behind may hold its streams open."""


TIMED_OUT = 124
"""Exit code of a command that took too long, as `timeout` has it."""
How = Literal["exited", "cancelled", "timed out"]


@dataclass(frozen=True)
class Ended:
    """How a shell line ended. `exit_code` as bash counts it: 128 + the signal's number when one ended it."""

    exit_code: int
    how: How = "exited"


class Limits:
    """When a command has to end: called off, or out of time. It is told to end, and killed when it does not.

    Args:
        seconds: how long it may take. cancel: set by the face to end it.
        tell: sends it TERM or KILL.
    """

    def __init__(self, seconds: float, cancel: Event, tell: Callable[[str], None]) -> None:
        self._deadline = time.monotonic() + seconds
        self._cancel = cancel
        self._tell = tell
        self._next = float("inf")
        self._kills = 0
        self.how: How = "exited"

    def look(self) -> bool:
        """Called again and again while it runs. False: it was killed and is still there."""
        now = time.monotonic()
        if self.how == "exited" and (self._cancel.is_set() or now >= self._deadline):
            self.how = "cancelled" if self._cancel.is_set() else "timed out"
            self._next = now + END_SECONDS
            self._tell("TERM")
        elif now >= self._next:
            self._kills += 1
            self._next = now + END_SECONDS
            self._tell("KILL")
        return self._kills < 2

    def ended(self, exit_code: int) -> Ended:
        """The end of a command that has ended with this code."""
        return Ended(TIMED_OUT if self.how == "timed out" else exit_code, self.how)


class Lines:
    """Bytes of one stream in, lines out."""

    def __init__(self, stream: Stream, hear: Hear) -> None:
        self._stream: Stream = stream
        self._hear = hear
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._heard = 0

    def feed(self, data: bytes) -> None:
        """Hear what is complete of it."""
        if self._heard > OUTPUT_LIMIT:
            return
        kept = data[: OUTPUT_LIMIT - self._heard]
        self._heard += len(kept)
        *lines, self._rest = (self._rest + self._decoder.decode(kept)).split("\n")
        for line in lines:
            self._hear(self._stream, line)
        while len(self._rest) > LONGEST_LINE:
            self._hear(self._stream, self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        if len(kept) < len(data):
            self.end()
            self._hear(self._stream, "[more output was left out]")
            self._heard = OUTPUT_LIMIT + 1

    def end(self) -> None:
        """Hear the last line, which may have no newline."""
        rest = self._rest + self._decoder.decode(b"", final=True)
        self._rest = ""
        if rest:
            self._hear(self._stream, rest)
