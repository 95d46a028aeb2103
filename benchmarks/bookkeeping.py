"""How often a model waits for its study: one run by itself, and several workers, on a scorer that only sleeps.

    python benchmarks/bookkeeping.py                              # batches of 8 that take 0.9 s, as a 1.5B model's on an H100
    python benchmarks/bookkeeping.py --seconds 0.9 --trials 512 --workers 2,4

Needs no GPU: what is measured is drawing, telling and the storage (an SQLite file), each process as in a real search
(`search/apart.py`). The reference is a model that never waits. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own scorer

from bruno.engine.search.apart import work_apart
from bruno.engine.search.bookkeeper import Seat
from bruno.engine.search.storage import open_study
from bruno.engine.search.study import Plan, Stop
from tests.engine.search.one_worker import SPACE, bowl

BATCH = 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=0.9, help="that a batch of 8 takes")
    options.add_argument("--trials", type=int, default=256)
    options.add_argument("--workers", default="2")
    options.add_argument("--one", nargs=2, metavar=("STORAGE", "NAME"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(one(given.seconds, given.trials, *given.one)))
        return
    import optuna
    from shapes import machine, torch

    line = {"benchmark": "bookkeeping", "machine": machine(torch.device("cpu")), "cores": os.cpu_count()}
    line |= {"optuna": optuna.__version__, "seconds_a_batch": given.seconds, "trials": given.trials}
    line["never_waiting"] = round(60 * BATCH / given.seconds, 1)
    line["by_itself"] = several(given, [""])
    for count in map(int, given.workers.split(",")):
        line[f"workers_{count}"] = several(given, [str(number) for number in range(1, count + 1)])
    print(json.dumps(line))


def one(seconds: float, trials: int, storage: str, name: str) -> dict[str, object]:
    """A process with its share: when each of its batches began and ended."""
    batches = []

    def evaluate(edits, rows, known):
        began = time.monotonic()
        time.sleep(seconds * len(edits) / BATCH)
        batches.append((began, time.monotonic(), len(edits)))
        return bowl(edits, rows, known)

    seat = Seat(storage, "s", SPACE, Plan(trials, BATCH, 20, 0, ahead=not name), name, 30, dealer=name == "1")
    share = work_apart(seat, evaluate, lambda _: None, Stop())
    return {"batches": batches, "waited": share.waited}


def several(given: argparse.Namespace, names: list[str]) -> dict[str, object]:
    """Trials a minute of so many together: between each one's second batch and its last but one, and from first to last."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"{folder}/study.sqlite3"
        open_study(storage, "s", {}, heartbeat=30, settings={})
        command = [
            sys.executable,
            __file__,
            "--seconds",
            str(given.seconds),
            "--trials",
            str(given.trials),
            "--one",
            storage,
        ]
        started = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in names]
        shares = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    steady = sum(
        60 * sum(count for *_, count in batches[2:-1]) / (batches[-2][1] - batches[1][1])
        for batches in (share["batches"] for share in shares)
    )
    first = min(share["batches"][0][0] for share in shares)
    last = max(share["batches"][-1][1] for share in shares)
    return {
        "trials_a_minute": round(steady, 1),
        "trials_a_minute_in_all": round(60 * given.trials / (last - first), 1),
        "waited": [round(share["waited"], 3) for share in shares],
    }


if __name__ == "__main__":
    main()
