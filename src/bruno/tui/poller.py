"""One reading of the service for all views: runs often, the provider's list at its own pace. Blocks; called in a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from bruno.errors import BrunoError

if TYPE_CHECKING:
    from bruno.operator.service import Operator
    from bruno.operator.views import InstancesView, RunView

RUNS_SECONDS = 1.0
"""Seconds between two readings of the runs' records; the log itself is read by whoever follows the run."""
STALE_POLLS = 3


@dataclass(frozen=True)
class Snapshot:
    """What all views are drawn from. Empty fields before the first reading mean unknown."""

    at: datetime
    runs: tuple[RunView, ...] = ()
    instances: InstancesView | None = None
    problem: str = ""
    """Why the last reading failed; the data beside it is older."""
    poll: timedelta = timedelta(seconds=5)

    def is_stale(self, read_at: datetime | None) -> bool:
        """Whether a reading is older than three polls, was never made, or is of a time that the clock has not reached."""
        return read_at is None or abs(self.at - read_at) > STALE_POLLS * self.poll


@dataclass
class Poller:
    """Reads the service; keeps what it last knew when a reading fails.

    Args:
        operator: the service. seconds: between two readings of the provider's list. clock: aware UTC now.
    """

    operator: Operator
    seconds: float
    clock: Callable[[], datetime]
    _runs: tuple[RunView, ...] = ()
    _instances: InstancesView | None = None
    _listed_at: datetime | None = None
    _problem: str = field(default="", repr=False)

    def read(self, *, fresh: bool = False) -> Snapshot:
        """One snapshot. `fresh` reads the provider's list now, whatever its age."""
        now = self.clock()
        poll = timedelta(seconds=self.seconds)
        try:
            self._runs = self.operator.runs()
            # A clock that was set back must not stop the reading for as long as it was set back.
            if fresh or self._listed_at is None or abs(now - self._listed_at) >= poll:
                self._listed_at = now
                self._instances = self.operator.instances(fresh=fresh)
            self._problem = ""
        except BrunoError as error:
            self._problem = str(error)
        return Snapshot(self.clock(), self._runs, self._instances, self._problem, poll)
