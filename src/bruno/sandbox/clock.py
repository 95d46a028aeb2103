"""The sandbox's clock: real, scaled or frozen, and the same after a restart. Touches nothing.

One straight line maps the machine's wall clock to the sandbox's: `now = base + (wall - anchor) * rate`. Rate 1 is real
time, 60 makes a minute of every second, 0 stands still until `advance` is called (how tests drive it). The line is part
of the saved state, so time goes on while the sandbox process is down, as it does at a provider.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, Field


class Clock(BaseModel):
    """A line from wall-clock seconds to sandbox seconds (both since the epoch).

    Args:
        base: sandbox time at `anchor`, in seconds.
        anchor: wall-clock time the line starts from, in seconds.
        rate: sandbox seconds per wall-clock second; 0 for a frozen clock. Never negative.
    """

    base: float = Field(default_factory=time.time)
    anchor: float = Field(default_factory=time.time)
    rate: float = Field(default=1.0, ge=0)

    @classmethod
    def frozen(cls, at: float = 1_767_225_600.0) -> Clock:
        """A clock that only moves when told to. The default start is 2026-01-01 00:00 UTC."""
        return cls(base=at, rate=0)

    @classmethod
    def scaled(cls, rate: float) -> Clock:
        """A clock that starts now and runs `rate` times as fast as the wall clock."""
        return cls(rate=rate)

    def now(self) -> float:
        """Sandbox time in seconds since the epoch."""
        return self.base + (time.time() - self.anchor) * self.rate

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds` at once, also backwards: a clock jump for a running clock, time for a frozen one."""
        self.base += seconds

    def wall_seconds(self, seconds: float) -> float | None:
        """How long to wait on the wall clock for `seconds` of sandbox time; None if it will not come by itself."""
        return seconds / self.rate if self.rate > 0 else None
