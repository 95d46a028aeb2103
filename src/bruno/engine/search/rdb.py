"""Optuna's storage for one process or several: with fewer transactions, and reads that lock nothing.

Everything that is stored, and in which order a trial goes from hand to hand, stays Optuna's. Two things are ours:

- **Reads lock nothing.** On SQLite a transaction that takes or changes a trial has to begin as a writer's: there are no row
  locks, and two workers could otherwise both read that a trial waits, and both take it. One that only reads begins as a reader's,
  and waits for nobody (write-ahead log).
- **A draw is stored as one.** Optuna stores each parameter by itself, each of which locks, reads and waits for its commit;
  within `together` they are stored at the end, in one transaction, by the same method of Optuna's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy.event

_READS = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "_get_trials",
    "_get_stale_trial_ids",
)
"""Methods of `RDBStorage` that read, and are asked for while a study is worked on; any other locks."""


class _Here(threading.local):
    """What a thread is doing."""

    def __init__(self) -> None:
        self.reading = False
        self.drawn: list[tuple[Any, ...]] | None = None


class SharedStorage(optuna.storages.RDBStorage):
    """`RDBStorage` as said above; its arguments are the same."""

    def __init__(self, url: str, **options: Any) -> None:
        self._here = _Here()
        super().__init__(url, **options)
        if self.engine.name == "sqlite":
            sqlalchemy.event.listen(self.engine, "begin", self._begin)

    def _begin(self, connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if self._here.reading else "BEGIN IMMEDIATE")

    def _set_trial_param(self, *parameter: Any) -> None:
        if self._here.drawn is None:
            super()._set_trial_param(*parameter)
        else:
            self._here.drawn.append(parameter)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Parameters that this thread sets within are stored at its end, all or none."""
        drawn = self._here.drawn = []
        try:
            yield
        finally:
            self._here.drawn = None
        with self.scoped_session() as session, session.begin(), session.no_autoflush:
            for parameter in drawn:
                self._set_trial_param_without_commit(session, *parameter)


def _reading(read: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read)
    def method(storage: SharedStorage, *arguments: Any, **named: Any) -> Any:
        storage._here.reading = True
        try:
            return read(storage, *arguments, **named)
        finally:
            storage._here.reading = False

    return method


for _name in _READS:
    setattr(SharedStorage, _name, _reading(getattr(optuna.storages.RDBStorage, _name)))


@contextmanager
def together(study: optuna.Study) -> Iterator[None]:
    """Store parameters that are suggested within at its end, where the study's storage can."""
    backend = getattr(study._storage, "_backend", None)
    if isinstance(backend, SharedStorage):
        with backend.together():
            yield
    else:
        yield
