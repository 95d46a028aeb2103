"""Signs of life: what tells other workers that the trials of this one are in good hands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import optuna

from bruno.engine.search.storage import STORAGE_ERRORS


class Heartbeats:
    """Signs of life for the trials in hand, from a thread of their own, because scoring takes longer than the grace
    period may. A beat that cannot be stored is left out: the next may reach the storage, and if none does in time, another
    worker has the trial and its result here is refused.

    Args:
        storage: where they are recorded.
        seconds: between two of them.
        alive: asked before each but the first of a trial; none is recorded while it says no.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, seconds: int, alive: Callable[[], bool] = lambda: True
    ) -> None:
        self._storage, self._seconds, self._alive = storage, seconds, alive
        self._trials: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def beat(self, trial_id: int) -> None:
        """Record one now."""
        self._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]  (RDB storages have it)

    def begin(self, trial_id: int) -> None:
        """Record the first one now and go on with it."""
        self.beat(trial_id)
        self._trials.add(trial_id)

    def end(self, trial_id: int) -> None:
        """This trial is in hand no more."""
        self._trials.discard(trial_id)

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            if not self._alive():
                continue
            for trial_id in tuple(self._trials):
                try:
                    self.beat(trial_id)
                except STORAGE_ERRORS:
                    break

    def __enter__(self) -> Heartbeats:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=1)
