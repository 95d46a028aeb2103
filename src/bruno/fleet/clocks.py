"""Time as an argument: every wait in this room goes through a clock and a sleep that tests replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
Sleep = Callable[[float], None]


def utc_now() -> datetime:
    return datetime.now(UTC)


def real_sleep(seconds: float) -> None:
    time.sleep(seconds)
