"""A worker of two processes, of which this one has the "model", a function whose values are known: NAME WHAT, storage in
TEST_STORAGE. WHAT it does at its second batch: `freeze` itself, `hold` it until it is told to stop, or `nothing`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading

from bruno.engine.search.apart import work_apart
from bruno.engine.search.bookkeeper import Seat
from bruno.engine.search.study import Plan, stop_on_signals
from bruno.errors import BrunoError
from tests.engine.search.one_worker import BEAT, SPACE, TRIALS, bowl, say

SAYING = threading.Lock()


def tell(line: str) -> None:
    with SAYING:
        say(line)


def main(name: str, what: str) -> None:
    batches = 0

    def evaluate(edits, rows, known):
        nonlocal batches
        batches += 1
        tell(f"scoring beside {multiprocessing.active_children()[0].pid}")
        if batches == 2 and what == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        while batches == 2 and what == "hold" and not stop.requested:
            signal.sigtimedwait([], 0.05)
        return bowl(edits)

    def emit(event):
        for line in event.lines():
            tell(line)

    seat = Seat(os.environ["TEST_STORAGE"], "s", SPACE, Plan(TRIALS, 2, 6, 3), name, BEAT, patience=60)
    with stop_on_signals() as stop:
        try:
            share = work_apart(seat, evaluate, emit, stop)
        except BrunoError as error:
            tell(f"Error: {error}")
            sys.exit(1)
    tell(f"{'whole' if share.whole else 'stopped'} {share.scored}")


if __name__ == "__main__":
    main(*sys.argv[1:])
