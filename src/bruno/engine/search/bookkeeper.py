"""A study in a process of its own: it takes, draws and stores trials, and has the model's process score them.

One Python process cannot do both at speed: drawing a trial is tens of milliseconds of Python, and what launches an
accelerator's work would wait for the interpreter at each launch. So `apart.py`, which has the model, starts this process, and the
two talk over a pipe. Requests are answered there one at a time, in their order. Imports no torch.

- **Signs of life.** The other process says every so often that it lives. While it does not (killed, frozen), no heartbeat is
  recorded here: its trials are then another worker's, as if both were gone.
- **Its end is ours.** Once the pipe is closed this process ends at once, whatever it was doing: a kill costs what is in hand.
- **Signals** are heard over there alone, and a request to stop is passed on.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import optuna

from bruno.engine.edits.trial import TrialEdit
from bruno.engine.log import keep_warnings
from bruno.engine.scoring.result import Glance, Known, Scores, Stopped
from bruno.engine.search.shared import Worker
from bruno.engine.search.space import Parameters, Space
from bruno.engine.search.storage import PATIENCE, STORAGE_ERRORS, join_study, reason
from bruno.engine.search.study import Plan, Stop, remaining, search
from bruno.errors import BrunoError
from bruno.settings.secrets import redact

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNS = 3
"""Signs of life in the time between two heartbeats."""


@dataclass(frozen=True)
class Seat:
    """A worker's place at a study, or that of the only process which works on one.

    Args:
        storage: of the study, which a run has made.
        study: its name there.
        space: that its trials are drawn from.
        plan: what the study is to hold.
        name: unique among all workers of the study; "" for a study that nobody else works on.
        heartbeat: seconds between two signs of life in the storage.
        dealer: deals out the trials.
        patience: seconds that a storage which does not answer is waited for.
        warnings: the file for libraries' warnings; nowhere when None.
    """

    storage: str
    study: str
    space: Space
    plan: Plan
    name: str
    heartbeat: int
    dealer: bool = False
    patience: float = PATIENCE
    warnings: Path | None = None


class Elsewhere(Exception):
    """A defect in the worker's other process, in one line; where it happened there is a note of this exception."""


def portable(error: BaseException) -> BaseException:
    """An error as the other process can raise it: those with a name are themselves, of which causes do not travel."""
    if isinstance(error, STORAGE_ERRORS):
        return optuna.exceptions.StorageInternalError(reason(error))
    if isinstance(error, BrunoError):
        try:
            return pickle.loads(pickle.dumps(error))  # noqa: S301  (our own, of this moment)
        except Exception:  # noqa: BLE001  (one that cannot travel)
            return BrunoError(error.message, fix=error.fix)
    defect = Elsewhere(redact(f"{type(error).__name__}: {error}"))
    defect.add_note(redact("".join(traceback.format_exception(error))))
    return defect


class ModelsProcess:
    """The process that has the model, as this one sees it."""

    def __init__(self, connection: Connection, pid: int) -> None:
        self.stop = Stop()
        self._connection, self._pid, self._sign = connection, pid, time.monotonic()
        self._sending = threading.Lock()
        self._waiting: deque[Future[Any]] = deque()
        threading.Thread(target=self._listen, name="model's process", daemon=True).start()

    def say(self, kind: str, content: object) -> None:
        """Tell it something that has no answer."""
        with self._sending:
            self._connection.send((kind, content))

    def ask(self, kind: str, *content: object) -> Any:
        """Its answer.

        Raises:
            What it raised, as far as that can travel (`portable`).
        """
        answer: Future[Any] = Future()
        with self._sending:  # answers come in the order of requests
            self._waiting.append(answer)
            self._connection.send((kind, content))
        return answer.result()

    def look(self, drawn: Sequence[Parameters]) -> Sequence[Glance]:
        """What forward passes say of candidates."""
        return self.ask("look", drawn)

    def gave_sign_within(self, seconds: float) -> bool:
        """Whether it said that it lives so recently."""
        return time.monotonic() - self._sign < seconds

    def _listen(self) -> None:
        """Hear it until it has gone, and end then; a defect here would leave a worker that keeps trials and scores none."""
        try:
            while True:
                # A process that it has forked may hold the pipe's other end, which then stays open when it is killed.
                while not self._connection.poll(1):
                    if os.getppid() != self._pid:
                        return
                kind, content = self._connection.recv()
                self._sign = time.monotonic()
                if kind == "stop":
                    self.stop.requested = True
                elif kind == "answer":
                    self._waiting.popleft().set_result(content)
                elif kind == "raised":
                    self._waiting.popleft().set_exception(content)
        except (EOFError, OSError):
            pass
        finally:
            os._exit(1)


def keep_books(connection: Connection, seat: Seat, pid: int) -> None:
    """This process from its start to its end: what `Worker` does, for the model of process `pid`."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the other process has blocked them for our start
    keep_warnings(seat.warnings)
    model = ModelsProcess(connection, pid)
    try:
        last = ("ended", _work(seat, model))
    except Exception as error:  # noqa: BLE001  (raised again over there)
        last = ("failed", portable(error))
    try:
        model.say(*last)
    except OSError:
        os._exit(1)  # it has gone: nobody is left to tell


def _work(seat: Seat, model: ModelsProcess) -> tuple[bool, int]:
    """Whether the study is whole, and how many trials were scored for it here."""
    plan = seat.plan
    if plan.screening is not None:
        plan = replace(plan, screening=replace(plan.screening, look=model.look))

    say = partial(model.say, "event")
    if not seat.name:
        study = join_study(seat.storage, seat.study, heartbeat=0)
        before = remaining(study, plan.trials)

        def evaluate(
            edits: Sequence[TrialEdit], _rows: int, known: Sequence[Known]
        ) -> Sequence[Scores | Stopped | str]:
            return model.ask("score", edits, known)  # the other process halves its rows where memory runs out

        whole = search(study, seat.space, evaluate, plan, say, model.stop)
        return whole, before - remaining(study, plan.trials)
    worker = Worker(
        join_study(seat.storage, seat.study, heartbeat=seat.heartbeat),
        seat.space,
        lambda edits, known: model.ask("score", edits, known),
        plan,
        say,
        model.stop,
        seat.name,
        seat.heartbeat,
        seat.dealer,
        seat.patience,
        alive=lambda: model.gave_sign_within(seat.heartbeat),
    )
    return worker.work(), worker.scored
