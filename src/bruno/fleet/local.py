"""A shell line on the operator's own machine. The one file outside the sandbox that starts a process.

It runs in bash, which is what the guard reads it as, in a session of its own: it has no terminal to paint on or to ask at, no
input, and one signal ends all of it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from datetime import datetime
from threading import Event
from typing import IO

from bruno.errors import InputError
from bruno.fleet.errors import FactsChanged
from bruno.fleet.output import DRAIN_SECONDS, POLL_SECONDS, Ended, Hear, Limits, Lines
from bruno.guard.actions import RunLocal
from bruno.guard.command_acts import require_command
from bruno.guard.command_rules import CommandRules
from bruno.guard.permit import Permit


def run_local(
    action: RunLocal,
    permit: Permit | None,
    now: datetime,
    *,
    rules: CommandRules,
    git_remote: str,
    hear: Hear,
    cancel: Event,
) -> Ended:
    """Run the line here and wait for its end.

    Args:
        permit: None is enough only for a line that the guard allows.
        hear: called with every line of output. cancel: ends it, as Ctrl-C would.

    Raises:
        Denied: no permit that covers it, or a verdict that is stricter than the one shown. Nothing was run.
        FactsChanged: bruno stands in another folder than the one shown. Nothing was run.
        InputError: there is no bash.
    """
    require_command(action, permit, rules, git_remote, now=now)
    here = os.getcwd()  # noqa: PTH109 - compared as text with what was shown
    if here != action.folder:
        difference = f"folder: confirmed {action.folder}, now {here}"
        raise FactsChanged(f"{difference}; nothing was run", differences=(difference,), fix="Ask for the plan again")
    bash = shutil.which("bash")
    if bash is None:
        raise InputError("there is no bash on this machine", fix="Run the command in your own terminal")
    # Not as a context manager: leaving it would wait for a command that an error has left running.
    process = subprocess.Popen(
        [bash, "-c", action.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return _heard(process, Limits(action.seconds, cancel, lambda name: _signal(process, name)), hear)
    except BaseException:
        _signal(process, "KILL")
        process.wait()
        raise


def _heard(process: subprocess.Popen[bytes], limits: Limits, hear: Hear) -> Ended:
    """Read both streams until the command has ended."""
    ended_at = float("inf")
    with selectors.DefaultSelector() as waiting:
        streams: dict[IO[bytes], Lines] = {}
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            assert pipe is not None  # noqa: S101 - asked for above
            waiting.register(pipe, selectors.EVENT_READ)
            streams[pipe] = Lines(name, hear)  # type: ignore[arg-type]
        while True:
            _read(waiting, streams)
            if process.poll() is None:
                limits.look()
                continue
            ended_at = min(ended_at, time.monotonic())
            if not waiting.get_map() or time.monotonic() - ended_at > DRAIN_SECONDS:
                break
        for pipe, lines in streams.items():
            lines.end()
            pipe.close()
    code = process.returncode
    return limits.ended(128 - code if code < 0 else code)


def _read(waiting: selectors.BaseSelector, streams: dict[IO[bytes], Lines]) -> None:
    if not waiting.get_map():  # it has closed both and goes on
        time.sleep(POLL_SECONDS)
    for key, _ in waiting.select(POLL_SECONDS):
        pipe: IO[bytes] = key.fileobj  # type: ignore[assignment]
        data = os.read(pipe.fileno(), 1 << 16)
        if data:
            streams[pipe].feed(data)
        else:
            waiting.unregister(pipe)


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """To its whole session's group: what the line started ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.Signals[f"SIG{name}"])
