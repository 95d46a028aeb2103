"""What a run tells the faces while it goes on: one frozen shape whose `text` is always ready to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.guard.sanitise import SafeText
    from bruno.runs.money import Money
    from bruno.runs.progress import Progress


class Kind(StrEnum):
    """What a RunEvent is about."""

    STEP_STARTED = "step_started"
    STEP_DONE = "step_done"
    WAITING = "waiting"
    """Still waiting for something outside: the status and how long."""
    NOTICE = "notice"
    WARNING = "warning"
    """Something degraded in the open: a lost connection, a disk that fills."""
    LOG = "log"
    """New lines of the engine's log, in `lines`."""
    PROGRESS = "progress"
    """A new reading, in `progress` and `money`."""
    TRANSFER = "transfer"
    """Bytes copied so far, in `done_bytes` and `total_bytes`."""
    DISCREPANCY = "discrepancy"
    """Two sources disagree; both are named in `text`."""
    DETACHED = "detached"
    """The console let go (it was asked to); the run itself goes on."""
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunEvent:
    """One thing that happened. `text` and `lines` are sanitised: they may be written to a screen as they are (markup off)."""

    kind: Kind
    run_id: str
    at: datetime
    text: SafeText
    step: str = ""
    progress: Progress | None = None
    money: Money | None = None
    lines: tuple[SafeText, ...] = ()
    done_bytes: int | None = None
    total_bytes: int | None = None


OnEvent = Callable[[RunEvent], None]
