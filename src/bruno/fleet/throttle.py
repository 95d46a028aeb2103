"""The provider's published intervals, kept on our side so that its 429 stays rare. Touches only its clock."""

from __future__ import annotations

from collections import deque
from threading import Lock

from bruno.fleet.clocks import Clock, Sleep

INTERVALS: dict[str, float] = {
    "list": 1.0,
    "show": 2.0,
    "create": 4.5,
    "change": 1.0,
    "destroy": 3.0,
    "ssh": 1.0,
    "attach": 2.0,
    "user": 1.0,
}
"""Least seconds between two requests of a kind (the provider's documentation)."""
SEARCHES, SEARCH_WINDOW = 10, 60.0
"""At most so many searches in so many seconds; there is a daily quota besides, which no waiting helps."""


class Throttle:
    """Lets each kind of request through no faster than the provider allows. Shared by all threads of the process."""

    def __init__(self, clock: Clock, sleep: Sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._next: dict[str, float] = {}
        self._searches: deque[float] = deque(maxlen=SEARCHES)

    def wait(self, kind: str) -> None:
        """Return when a request of this kind may be sent. `kind` is `search` or a key of `INTERVALS`."""
        with self._lock:
            delay = self._reserve(kind, self._clock().timestamp())
        if delay > 0:
            self._sleep(delay)

    def _reserve(self, kind: str, now: float) -> float:
        """Take the next free place and return the seconds until it comes up.

        Places are given out under the lock and waited for outside it, so that a slow kind never holds up another. A clock
        that was set back must not turn into an hour's wait: no wait is longer than the kind's own interval times those queued.
        """
        if kind == "search":
            full = len(self._searches) == SEARCHES
            start = max(now, min(self._searches[0], now) + SEARCH_WINDOW) if full else now
            self._searches.append(start)
            return start - now
        interval = INTERVALS[kind]
        ready = self._next.get(kind, now)
        start = now if ready - now > 20 * interval else max(now, ready)
        self._next[kind] = start + interval
        return start - now
