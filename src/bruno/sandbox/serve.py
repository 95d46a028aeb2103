"""The serving process: a sandbox in the foreground until it is idle, told to end, or interrupted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from bruno.errors import InputError
from bruno.sandbox import launch
from bruno.sandbox.clock import Clock
from bruno.sandbox.info import SandboxInfo
from bruno.sandbox.state import write_private

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"


def serve(
    state: Path,
    *,
    host: str = LOOPBACK,
    speed: float | None = None,
    idle_minutes: float | None = None,
    rate_limits: bool = False,
    ready: Callable[[SandboxInfo], None] = lambda _info: None,
) -> None:
    """Serve the sandbox of a state folder until it ends.

    Args:
        state: the state folder, `launch.state_of(home)`; made if missing.
        host: must be 127.0.0.1. It is an argument so that asking for more is refused in words.
        speed: sandbox seconds per second; None keeps what the state has (1 for a new sandbox).
        idle_minutes: end after so long without a request or a running instance; None to stay.
        rate_limits: answer 429 as often as the provider documents.
        ready: called once, when it serves.

    Raises:
        InputError: another host, another sandbox on this folder, or a speed below zero.
        StateError: the folder's state cannot be read.
    """
    if host != LOOPBACK:
        raise InputError(
            f"The sandbox listens on {LOOPBACK} only, not on {host}: its instances run real commands as you"
        )
    if speed is not None and speed < 0:
        raise InputError(
            f"The sandbox's speed cannot be {speed:g}", fix="Give 1 for real time, 60 for a minute a second"
        )
    state.mkdir(parents=True, exist_ok=True)
    with launch.serving(state):
        asyncio.run(_serve(state, speed, idle_minutes, rate_limits, ready))


async def _serve(
    state: Path,
    speed: float | None,
    idle_minutes: float | None,
    rate_limits: bool,
    ready: Callable[[SandboxInfo], None],
) -> None:
    from bruno.sandbox.server import Sandbox

    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    idle = None if idle_minutes is None else idle_minutes * 60
    sandbox = Sandbox(state, idle_after=idle, rate_limits=rate_limits)
    if speed is not None:
        sandbox.state.clock = Clock(base=sandbox.world.now(), rate=speed)
    port_file = sandbox.folder / "server.json"
    async with sandbox:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, sandbox.request_end, signal.Signals(number).name)
        write_private(port_file, sandbox.info.model_dump_json(indent=1))
        log.info("serving %s at %s, pid %d", sandbox.folder, sandbox.url, os.getpid())
        ready(sandbox.info)
        await sandbox.ended.wait()
        port_file.unlink(missing_ok=True)
