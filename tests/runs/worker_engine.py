"""Stands for the engine of several workers where the true one would be too slow: its own lines, trials that cost nothing.

    worker_engine.py --config config.toml              the first: makes the table of trials, works, saves a small model
    worker_engine.py worker --config config.toml ...   another: waits for the table, works

Trials are handed out by a table in the database of BRUNO_SEARCH__STORAGE (else `search.storage` of the config), so a trial is
done once however many there are. `hold` in a worker's folder makes it wait before its next trial while the file is there;
`crash` ends it there.
"""

import os
import sys
import time
import tomllib
from pathlib import Path

from sqlalchemy import Connection, create_engine, text

from bruno.engine import events as said
from bruno.engine.log import Emitter

TAKE = """UPDATE bruno_trials SET owner = :me WHERE owner IS NULL AND number = (SELECT min(number) FROM bruno_trials WHERE
owner IS NULL) RETURNING number"""
LOST = "UPDATE bruno_trials SET owner = NULL WHERE done = 0 AND owner <> :me"


def main() -> int:
    config = tomllib.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    out, trials = Path(config["out"]), config["search"]["trials"]
    first = "worker" not in sys.argv
    out.mkdir(parents=True, exist_ok=True)
    with (out / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    database = create_engine(os.environ.get("BRUNO_SEARCH__STORAGE") or config["search"]["storage"])
    with Emitter(out) as emit:
        emit(said.RunStarted(version="0", model=config["model"], behaviour="b", out=str(out), seed=0, pid=os.getpid()))
        with database.connect() as table:
            make_study(table, trials) if first else wait_for_study(table)
            emit(said.InitialScores(refusals=57, prompts=60))
            if not work(table, trials, out, emit, first=first):
                return 1
        if first:
            save(out / "demo-bruno", emit)
        emit(said.Finished(seconds=1.0))
    return 0


def make_study(table: Connection, trials: int) -> None:
    table.execute(
        text("CREATE TABLE IF NOT EXISTS bruno_trials (number int PRIMARY KEY, owner text, done int DEFAULT 0)")
    )
    table.commit()
    if not table.execute(text("SELECT count(*) FROM bruno_trials")).scalar_one():
        for number in range(1, trials + 1):
            table.execute(text("INSERT INTO bruno_trials (number) VALUES (:n)"), {"n": number})
    table.commit()


def wait_for_study(table: Connection) -> None:
    while True:
        try:
            if table.execute(text("SELECT count(*) FROM bruno_trials")).scalar_one():
                return
        except Exception:  # noqa: BLE001 - no such table yet, said differently by each database
            table.rollback()
        time.sleep(0.1)


def work(table: Connection, trials: int, out: Path, emit: Emitter, *, first: bool) -> bool:
    """Until every trial has its result. The first takes over what a lost worker left."""
    me, idle = str(out), 0
    table.execute(
        text("UPDATE bruno_trials SET owner = NULL WHERE done = 0 AND owner = :me"), {"me": me}
    )  # an earlier start's
    table.commit()
    while True:
        while (out / "hold").exists():
            time.sleep(0.05)
        number = table.execute(text(TAKE), {"me": me}).scalar()
        table.commit()
        if number is None:
            done = table.execute(text("SELECT count(*) FROM bruno_trials WHERE done = 1")).scalar_one()
            table.commit()
            if done == trials:
                return True
            idle += 1
            if first and idle > 20:
                table.execute(text(LOST), {"me": me})
                table.commit()
            time.sleep(0.1)
            continue
        emit(said.TrialStarted(trial=number, trials=trials, parameters={"attn.o_proj.max_weight": 0.9}))
        if (out / "crash").exists():
            emit(said.Failed(message="the tensors are on fire", kept="what was scored is kept"))
            return False
        time.sleep(0.1)
        emit(said.TrialScored(trial=number, refusals=max(0, 60 - 5 * number), prompts=60, kl=0.1 * number))
        table.execute(text("UPDATE bruno_trials SET done = 1 WHERE number = :n"), {"n": number})
        done = table.execute(text("SELECT count(*) FROM bruno_trials WHERE done = 1")).scalar_one()
        table.commit()
        emit(said.Progress(completed=done, trials=trials, elapsed_seconds=number, remaining_seconds=trials - done))


def save(folder: Path, emit: Emitter) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    emit(said.ModelSaved(path=str(folder)))


if __name__ == "__main__":
    sys.exit(main())
