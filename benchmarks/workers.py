"""Trials a minute with one and with several workers, and what a trial costs the database. Prints one JSON line.

    python benchmarks/workers.py --model demo --trials 6                    # CPU, the demo model
    python benchmarks/workers.py --shape 1.5b --workers 1,2                 # two GPUs; random weights, made on the spot
    python benchmarks/workers.py --database-only                            # statements, bytes and seconds a trial

The runs are the real ones (`python -m bruno.engine abliterate ... --workers N`); the plain reference is the run with one.
Two paces are told. The steady one is what the workers do while all of them are at work and warm: from when each has had
two batches (compiling, captured graphs) until the first finds nothing left to take. The whole run's is that between the first and
the last report of progress, in which one worker waits for another at both ends; a long search comes close to the steady one.
`model_waits` is each worker's share of the time in which its model had no batch.

The database is a PostgreSQL server started for the purpose; bytes are counted by a relay before it, its busy time is its own
(`pg_stat_database.active_time`), and the trials take no time but the database's. `--wait MS` adds a distance to it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, about

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own server

BEHAVIOUR = """
name = "bench"
about = "nothing: random weights"
less = "does"
[bad]
train = {{ source = "{0}/bad.txt::rows=:100" }}
search = {{ source = "{0}/bad.txt" }}
held_out = {{ source = "{0}/held.txt" }}
[good]
train = {{ source = "{0}/good.txt" }}
search = {{ source = "{0}/good.txt" }}
held_out = {{ source = "{0}/held.txt" }}
[markers]
core = ['no such answer']
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="", help="demo, or any model's folder or hub id")
    options.add_argument("--shape", default="tiny", choices=sorted(SHAPES), help="a random model, without --model")
    options.add_argument("--trials", type=int, default=512 if torch.cuda.is_available() else 16)
    options.add_argument("--prompts", type=int, default=100)
    options.add_argument("--tokens", type=int, default=30)
    options.add_argument("--together", type=int, default=0, help="trials in one batch (0: the engine's choice)")
    options.add_argument("--workers", default="1,2")
    options.add_argument(
        "--wait", type=float, default=0.0, help="ms that the relay adds to each answer of the database"
    )
    options.add_argument("--database-only", action="store_true")
    options.add_argument("--no-database", action="store_true")
    given = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    line: dict[str, object] = {"benchmark": "workers", **about(device), "gpus": torch.cuda.device_count()}
    line |= {"cores": len(os.sched_getaffinity(0)), "parameters": vars(given)}
    with tempfile.TemporaryDirectory() as folder:
        if not given.database_only:
            line["runs"] = runs(Path(folder), given)
    if not given.no_database:
        line["database"] = database(given.wait)
    print(json.dumps(line))


def runs(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    """The same search with each number of workers."""
    model = [given.model] if given.model else random_model(folder, given.shape, given.prompts)
    found: dict[str, dict[str, Any]] = {}
    for count in map(int, given.workers.split(",")):
        out = folder / f"with-{count}"
        command = [sys.executable, "-m", "bruno.engine", "abliterate", *model, "--out", str(out)]
        command += ["--trials", str(given.trials), "--workers", str(count), "--no-save", "--no-held-out"]
        command += ["--scoring.max_new_tokens", str(given.tokens), "--trial-batch", str(given.together)]
        if given.model:
            command += ["--scoring.bad_count", str(given.prompts), "--scoring.good_count", str(given.prompts)]
        if count == 1 and torch.cuda.is_available():
            command += ["--loading.device", "cuda:0"]
        began = time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        logs = [out / "workers" / str(n + 1) for n in range(count)] if count > 1 else [out]
        found[str(count)] = {
            **steady([events_of(log) for log in logs]),
            "whole_run": pace(events_of(out)),
            "seconds": round(time.monotonic() - began, 1),
        }
    first = next(iter(found.values()))
    return {
        "runs": found,
        "times_as_many": {count: ratio(each, first) for count, each in found.items()},
        "times_as_many_in_the_whole_run": {
            count: ratio(each["whole_run"], first["whole_run"]) for count, each in found.items()
        },
    }


def ratio(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    """How many times the other's trials a minute; None where one of them was too short to say."""
    both = one["trials_a_minute"], other["trials_a_minute"]
    return round(both[0] / both[1], 2) if None not in both else None


def events_of(folder: Path) -> list[dict[str, Any]]:
    """A folder's log, with times in seconds."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event | {"at": datetime.fromisoformat(event["time"]).timestamp()} for event in events]


def pace(events: list[dict[str, Any]]) -> dict[str, float | None]:
    """Trials a minute between the first and the last report of progress."""
    told = [(each["at"], each["completed"]) for each in events if each["kind"] == "progress"]
    (began, first), (ended, last) = told[0], told[-1]
    minutes = (ended - began) / 60
    return {"trials": last - first, "trials_a_minute": round((last - first) / minutes, 2) if minutes else None}


def steady(logs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Trials a minute of all workers from when each has had two batches until the first finds nothing left to take: the
    sum of their paces, each between the first and the last of its own batches that ended in that stretch."""
    ends = [batches(log) for log in logs]
    if any(len(each) < 2 for each in ends):
        return {"trials": 0, "trials_a_minute": None}
    began = max(each[1][0] for each in ends)
    ended = min(nothing_left(log) for log in logs)
    trials, rate = 0, 0.0
    for each in ends:
        within = [(at, count) for at, count in each if began <= at <= ended]
        if len(within) < 2:
            return {"trials": 0, "trials_a_minute": None}
        done = sum(count for _, count in within[1:])
        trials, rate = trials + done, rate + 60 * done / (within[-1][0] - within[0][0])
    waits = [share for log in logs for share in model_waits(log)]
    return {"trials": trials, "trials_a_minute": round(rate, 2), **({"model_waits": waits} if waits else {})}


def batches(log: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """When each of a worker's batches was stored, and how many trials it had."""
    found, count = [], 0
    for event in log:
        count += event["kind"] in ("trial_scored", "trial_stopped", "trial_failed")
        if event["kind"] == "progress":
            found.append((event["at"], count))
            count = 0
    return found


def nothing_left(log: list[dict[str, Any]]) -> float:
    """When a worker first found nothing left to take: it said so, or the study was whole with its last batch."""
    said = [each["at"] for each in log if each["kind"] == "notice" and each["text"].startswith("Waiting for ")]
    return min([*said, batches(log)[-1][0]])


def model_waits(log: list[dict[str, Any]]) -> list[float]:
    """The share of time in which a worker's model had no batch, as it says at its end, 0 to 1."""
    texts = [each["text"] for each in log if each["kind"] == "notice"]
    return [float(found[1]) / 100 for text in texts if (found := re.search(r"next batch ([\d.]+)% of the time", text))]


def random_model(folder: Path, shape: str, prompts: int) -> list[str]:
    """A folder with a Qwen2 of this shape, its weights drawn now; a tokenizer of bytes; prompts of about 53 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    fast.save_pretrained(folder / "model")
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=4096, eos_token_id=None, pad_token_id=0)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(place):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if place == "cuda" else torch.float32)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "model")
    del model
    if place == "cuda":
        torch.cuda.empty_cache()
    for side, word in (("bad", "refuse"), ("good", "answer"), ("held", "hold")):
        texts = [f"Please {word} the question number {n:04d}, and be quick." for n in range(prompts)]
        (folder / f"{side}.txt").write_text("\n".join(texts))
    (folder / "bench.toml").write_text(BEHAVIOUR.replace("::rows=:100", "").format(folder))
    return [str(folder / "model"), "--behaviour", str(folder / "bench.toml")]


def database(wait_ms: float, trials: int = 200, batch: int = 8) -> dict[str, object]:
    """What one worker's trials cost a PostgreSQL server, in a study of 200 with batches of 8 and nothing to score."""
    import psycopg
    import sqlalchemy

    from bruno.engine.search.board import Board, deal
    from bruno.engine.search.shared import Worker
    from bruno.engine.search.storage import open_study
    from bruno.engine.search.study import Plan, Stop
    from tests.engine.postgres import server
    from tests.engine.search.one_worker import SPACE, bowl

    with server() as postgres, Relay(postgres.port, wait_ms / 1000) as relay:
        direct = postgres.new_database("bench")
        url = direct.replace(f":{postgres.port}/", f":{relay.port}/")
        study = open_study(url, "bench", {}, heartbeat=30, settings={})
        plan, spent = Plan(trials, batch, 40, 0), {"statements": 0, "beside": 0, "seconds": 0.0, "commits": 0}
        scoring = threading.Event()

        class Counted(Worker):
            def _score(self, *given: Any) -> Any:
                scoring.set()  # nothing takes no time: what is done while a batch would be scored is what counts
                try:
                    return super()._score(*given)
                finally:
                    scoring.clear()

        def before(connection, *_: object) -> None:
            connection.info["began"] = time.perf_counter()

        def after(connection, *_: object) -> None:
            spent["statements"] += 1
            spent["beside"] += scoring.is_set()
            spent["seconds"] += time.perf_counter() - connection.info["began"]

        engine = study._storage._backend.engine
        deal(study, plan, Board())
        sqlalchemy.event.listen(engine, "before_cursor_execute", before)
        sqlalchemy.event.listen(engine, "after_cursor_execute", after)
        sqlalchemy.event.listen(engine, "commit", lambda _: spent.update(commits=spent["commits"] + 1))

        def active() -> float:
            with psycopg.connect(direct.replace("+psycopg", "")) as connection:
                connection.execute("SELECT pg_stat_force_next_flush()")
                row = connection.execute("SELECT active_time FROM pg_stat_database WHERE datname = 'bench'").fetchone()
                return float(row[0]) / 1000

        relayed, busy, began = relay.bytes, active(), time.perf_counter()
        Counted(study, SPACE, lambda edits, _: bowl(edits), plan, lambda _: None, Stop(), "bench", 30).work()
        seconds = time.perf_counter() - began
        engine.dispose()  # a session's time is added to the statistics when it ends
        time.sleep(1)
        per = {
            "statements": round(spent["statements"] / trials, 1),
            "statements_while_a_batch_is_scored": round(spent["beside"] / trials, 1),
            "commits": round(spent["commits"] / trials, 1),
            "kilobytes": round((relay.bytes - relayed) / trials / 1000, 1),
            "seconds_the_worker_waits": round(spent["seconds"] / trials, 4),
            "seconds_the_server_is_busy": round((active() - busy) / trials, 5),
            "seconds_in_all": round(seconds / trials, 4),
        }
    a_second = 64.0
    return {
        "trials": trials,
        "together": batch,
        "ms_added": wait_ms,
        "per_trial": per,
        "on_paper_64_workers_at_1_s_a_trial": {
            "statements_a_second": round(a_second * per["statements"]),
            "megabytes_a_second": round(a_second * per["kilobytes"] / 1000, 2),
            "server_cores_busy": round(a_second * per["seconds_the_server_is_busy"], 2),
        },
    }


class Relay:
    """Forwards a port of this machine to another, counts the bytes, and delays what comes back."""

    def __init__(self, target: int, delay: float) -> None:
        self.bytes, self._target, self._delay = 0, target, delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, delay in ((near, far, 0.0), (far, near, self._delay)):
                threading.Thread(target=self._pump, args=(source, sink, delay), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        try:
            while data := source.recv(1 << 16):
                self.bytes += len(data)
                if delay:
                    time.sleep(delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


if __name__ == "__main__":
    main()
