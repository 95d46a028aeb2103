"""The person's keyboard: the controlling terminal, never a pipe.

A prompt first waits a moment and then throws away everything typed until then, so that keys meant for something else (or a
`yes` pasted with the command) answer no question that was not on the screen yet.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from bruno.errors import NotConfirmed

ARM_SECONDS = 0.4
"""A card has to be on the screen for so long before a prompt can be answered."""


class Terminal:
    """The controlling terminal, open for a question."""

    def __init__(self, reader: TextIO, writer: TextIO) -> None:
        self._reader = reader
        self._writer = writer

    def show(self, text: str) -> None:
        """Write lines to the terminal itself, wherever stdout goes."""
        self._writer.write(text + "\n")
        self._writer.flush()

    def ask(self, prompt: str) -> str:
        """Ask once; what was typed before the prompt appeared is dropped. An end of input answers ''."""
        import termios

        try:  # from the first moment: Ctrl-C can come while the prompt is being written
            time.sleep(ARM_SECONDS)
            termios.tcflush(self._reader.fileno(), termios.TCIFLUSH)
            self._writer.write(prompt)
            self._writer.flush()
            return self._reader.readline().removesuffix("\n")
        except KeyboardInterrupt:
            self.show("\nnothing was done")
            raise


def is_interactive() -> bool:
    """Whether a person can be asked: stdin is a terminal (a pipe into bruno is not the person)."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def terminal(what: str, fix: str) -> Iterator[Terminal]:
    """Open the controlling terminal.

    Args:
        what: what needs the person, for the message when nobody can be asked.
        fix: what to do instead.

    Raises:
        NotConfirmed: stdin is not a terminal, or there is no controlling terminal.
    """
    if not is_interactive():
        raise NotConfirmed(f"{what} and stdin is not a terminal; nothing was done", fix=fix)
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise NotConfirmed(f"{what} and there is no controlling terminal; nothing was done", fix=fix) from error
    with os.fdopen(descriptor, "r", encoding="utf-8", errors="replace", closefd=True) as reader:
        writer = os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace")
        with writer:
            yield Terminal(reader, writer)
