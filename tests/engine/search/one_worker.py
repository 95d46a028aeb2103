"""One worker on a function whose values are known, as a process of its own: NAME [SECONDS FREEZE_AT], storage in TEST_STORAGE.

Imports no torch, so that four of them start at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from bruno.engine.scoring.result import Scores
from bruno.engine.search.shared import Worker
from bruno.engine.search.space import Space
from bruno.engine.search.storage import join_study
from bruno.engine.search.study import Plan, Stop

SPACE = Space(30, ("attn.o_proj", "mlp.down_proj"))
BEAT, TRIALS = 1, 40


def bowl(edits, rows=0, known=()):
    """Refusals fall with attention strength near its best place, KL rises with strength and reach."""
    results = []
    for edit in edits:
        attention, mlp = edit.kernels["attn.o_proj"], edit.kernels["mlp.down_proj"]
        miss = abs(attention.position - 22) / 10 + abs(attention.max_weight - 1.1)
        kl = 0.02 * attention.reach + 0.3 * max(0.0, mlp.max_weight) + 0.01
        results.append(Scores(refusals=min(60, int(60 * miss)), prompts=60, kl=kl))
    return results


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Paced(Worker):
    """Scores in step with what it draws ahead, so that a test knows how many trials it has in hand."""

    def _draw_ahead(self, board, beats):
        try:
            return super()._draw_ahead(board, beats)
        finally:
            DRAWN.release()


DRAWN = threading.Semaphore(0)


def main(name: str, seconds: str = "0.05", freeze_at: str = "0") -> None:
    batches = 0

    def slow(edits, known):
        nonlocal batches
        batches += 1
        assert DRAWN.acquire(timeout=60)
        say("scoring")
        if batches == int(freeze_at):
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(float(seconds))
        return bowl(edits)

    def emit(event):
        for line in event.lines():
            say(line)

    study = join_study(os.environ["TEST_STORAGE"], "s", heartbeat=BEAT)
    worker = Paced(study, SPACE, slow, Plan(TRIALS, 2, 6, 3), emit, Stop(), name, BEAT, patience=60)
    say(f"{'whole' if worker.work() else 'stopped'} {worker.scored}")


if __name__ == "__main__":
    main(*sys.argv[1:])
