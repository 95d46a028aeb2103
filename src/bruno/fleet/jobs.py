"""Launching a job that outlives the connection, once, and telling truly whether it runs (skeleton)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bruno.fleet.host import Host


class JobPhase(StrEnum):
    ABSENT = "absent"
    """Never launched here."""
    RUNNING = "running"
    FINISHED = "finished"
    """Ended by itself; `exit_code` says how."""
    LOST = "lost"
    """Was launched, no longer runs, and left no exit code: killed."""
    UNKNOWN = "unknown"
    """The machine's answer cannot be understood."""


@dataclass(frozen=True)
class JobState:
    phase: JobPhase
    exit_code: int | None = None
    pid: int | None = None
    started: int | None = None
    """Start time of the process, field 22 of /proc/PID/stat, in clock ticks since the machine's boot."""
    launched_at: datetime | None = None
    out_of_memory: bool = False
    """The kernel's log names this job's process: killed for want of memory."""
    detail: str = ""


def launch(host: Host, job_folder: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> JobState:
    """Start `argv` detached in `job_folder` (absolute), output to `job_folder/log`, under a lock.

    `env` travels in a 0600 file, not on a command line. Returns the state seen after the launch.

    Raises: AlreadyLaunched when the lock exists (ask `state`), HostLost (then ask `state` too: the lock tells), TransferFailed.
    """
    raise NotImplementedError


def state(host: Host, job_folder: str) -> JobState:
    """What the machine's process table and the job's files say. Raises HostLost, never guesses."""
    raise NotImplementedError
