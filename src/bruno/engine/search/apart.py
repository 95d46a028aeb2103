"""The model's side of a search: it scores what the process beside it asks for, and does nothing else in between.

`bookkeeper.py` is that process and says why there are two. Touches no storage: takes requests from a pipe, answers them
one at a time in their order, passes on what is said to the log, and a request to stop to the other side.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from bruno.engine.edits.trial import TrialEdit
from bruno.engine.events import Emit
from bruno.engine.scoring.result import Glance, Known, Scores, Stopped
from bruno.engine.search.bookkeeper import SIGNS, STOP_SIGNALS, Seat, keep_books, portable
from bruno.engine.search.evaluation import Evaluate, evaluate_batch
from bruno.engine.search.space import Parameters
from bruno.engine.search.study import Stop
from bruno.errors import BrunoError

_LOOK = 0.1  # seconds between two looks for a request to stop while nothing is to be scored
_LEAVE = 10.0  # seconds that the other process may take to leave once it has said its last


@dataclass(frozen=True)
class Share:
    """A process's part in a study.

    Attributes:
        whole: whether the study is; False when it was asked to stop first.
        scored: trials that the study has from here.
        waited: share of the time from the first batch to the end of the last in which no request was in hand, 0 to 1.
    """

    whole: bool
    scored: int
    waited: float


def work_apart(seat: Seat, evaluate: Evaluate, emit: Emit, stop: Stop) -> Share:
    """Score trials of a study until it is whole, with a process beside this one that takes and stores them.

    Args:
        seat: the place at the study. `seat.plan.screening` looks at candidates here, never while a batch is scored.
        evaluate: scores a batch; called again with fewer rows where memory runs out.
        emit: hears the events of both processes, from two threads.

    Raises:
        BrunoError, StorageInternalError (of `STORAGE_ERRORS`): what either process raised.
        BrunoError: the other process has gone.
    """
    screening = seat.plan.screening
    look = _look_nowhere if screening is None else screening.look
    if screening is not None:
        seat = replace(seat, plan=replace(seat.plan, screening=replace(screening, look=_look_nowhere)))
    with _beside(seat) as (connection, process):
        desk = _Desk(connection, process, seat, evaluate, look, emit, stop)
        with desk.open():
            return desk.serve()


def _look_nowhere(drawn: Sequence[Parameters]) -> Sequence[Glance]:
    """Stands for a function that cannot travel."""
    raise RuntimeError(f"nothing here looks at {len(drawn)} candidates")


@contextmanager
def _beside(seat: Seat) -> Iterator[tuple[Connection, BaseProcess]]:
    """The other process, ended on the way out: it leaves by itself once it has said its last, and else is killed,
    which costs what is in hand."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=keep_books, args=(far, seat, os.getpid()), name="bookkeeper", daemon=True)
    try:
        multiprocessing.resource_tracker.ensure_running()  # started later it would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # Ctrl-C must not come before it ignores that
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        yield near, process
        process.join(_LEAVE)
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        near.close()


class _Desk:
    """Requests taken one by one. What is said beside them is passed on by a thread, and another says that we live."""

    def __init__(
        self,
        connection: Connection,
        process: BaseProcess,
        seat: Seat,
        evaluate: Evaluate,
        look: Callable[[Sequence[Parameters]], Sequence[Glance]],
        emit: Emit,
        stop: Stop,
    ) -> None:
        self._connection, self._process, self._seat = connection, process, seat
        self._evaluate, self._look, self._emit, self._stop = evaluate, look, emit, stop
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._sending, self._left = threading.Lock(), threading.Event()
        self._rows, self._passed_on = 0, False
        self._raised: Exception | None = None
        self._free_since = self._waited = self._worked = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """While it is, the other process hears that we live, and is heard."""
        for work in (self._hear, self._give_signs):
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True).start()
        try:
            yield
        finally:
            self._left.set()

    def serve(self) -> Share:
        """Answer until the other process has said its last."""
        while True:
            kind, content = self._next()
            if kind == "score":
                self._answer(self._score, content)
            elif kind == "look":
                self._answer(self._look, content)
            elif kind == "ended":
                whole, scored = content
                return Share(whole, scored, self._waited / ((self._waited + self._worked) or 1))
            else:  # an error of ours is told first: what the other process raises is that, or comes of it
                raise self._raised or content or self._gone()

    def _score(self, edits: list[TrialEdit], known: Sequence[Known]) -> Sequence[Scores | Stopped | str]:
        results, self._rows = evaluate_batch(self._evaluate, edits, known, self._seat.plan.rows, self._rows, self._emit)
        return results

    def _answer(self, work: Callable[..., Any], content: tuple[Any, ...]) -> None:
        began = time.monotonic()
        if self._free_since:
            self._waited += began - self._free_since
        try:
            answer = ("answer", work(*content))
        except Exception as error:  # noqa: BLE001  (raised by `serve`, once the other process knows)
            self._raised = error
            answer = ("raised", portable(error))
        self._free_since = time.monotonic()
        self._worked += self._free_since - began
        self._pass_on_stop()  # before the answer, so that nothing more is begun
        self._send(*answer)

    def _next(self) -> tuple[str, Any]:
        while True:
            self._pass_on_stop()
            try:
                return self._inbox.get(timeout=_LOOK)
            except queue.Empty:
                continue

    def _pass_on_stop(self) -> None:
        if self._stop.requested and not self._passed_on:
            self._passed_on = True
            self._send("stop")

    def _send(self, kind: str, content: object = None) -> None:
        try:
            with self._sending:
                self._connection.send((kind, content))
        except OSError:
            pass  # it has gone, which `_hear` says

    def _give_signs(self) -> None:
        while not self._left.wait(self._seat.heartbeat / SIGNS):
            self._send("alive")

    def _hear(self) -> None:
        try:
            while True:
                kind, content = self._connection.recv()
                if kind == "event":
                    self._emit(content)
                else:
                    self._inbox.put((kind, content))
        except (EOFError, ConnectionError):
            self._inbox.put(("gone", None))
        except Exception as error:  # noqa: BLE001  (a log that cannot be written: `serve` raises it)
            self._inbox.put(("failed", error))

    def _gone(self) -> BrunoError:
        self._process.join(_LEAVE)
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        comes_back = (
            "what it had in hand comes back by its heartbeats" if self._seat.name else "everything told is saved"
        )
        fix = f"Start the same command again: {comes_back}"
        return BrunoError(f"The process that keeps this worker's study has ended ({how})", fix=fix)
