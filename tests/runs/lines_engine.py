"""Stands for the engine where the true one would be too slow: its own writer, its own lines, a search that costs nothing.

It reads the config it is given, keeps finished trials in its folder (a second start resumes) and saves a small folder of files.
`hold` in its folder says after which trial it waits until that file is gone; `crash` ends it at its next trial, once.
"""

import json
import os
import sys
import time
import tomllib
from pathlib import Path

from bruno.engine import events as said
from bruno.engine.log import Emitter


def main() -> int:
    config = tomllib.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    out, trials = Path(config["out"]), config["search"]["trials"]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    kept = out / "trials.json"
    done = json.loads(kept.read_text()) if kept.exists() else 0
    with Emitter(out) as emit:
        emit(said.RunStarted(version="0", model=config["model"], behaviour="b", out=str(out), seed=0, pid=os.getpid()))
        emit(said.InitialScores(refusals=57, prompts=60))
        if done:
            emit(said.Resumed(next_trial=done + 1, completed=done))
        for number in range(done + 1, trials + 1):
            while number > held_after(out / "hold"):
                time.sleep(0.05)
            emit(said.TrialStarted(trial=number, trials=trials, parameters={"attn.o_proj.max_weight": 0.9}))
            if (out / "crash").exists():
                (out / "crash").unlink()
                emit(said.Failed(message="the tensors are on fire", kept="what was scored is kept"))
                return 1
            emit(said.TrialScored(trial=number, refusals=max(0, 60 - 10 * number), prompts=60, kl=0.1 * number))
            emit(
                said.Progress(
                    completed=number, trials=trials, elapsed_seconds=number, remaining_seconds=trials - number
                )
            )
            kept.write_text(str(number))
        if config.get("export", {}).get("save", True):
            save(out / "demo-bruno", emit)
        emit(said.Finished(seconds=1.0))
    return 0


def held_after(hold: Path) -> int:
    try:
        return int(hold.read_text() or 0)
    except FileNotFoundError:
        return sys.maxsize


def save(folder: Path, emit: Emitter) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    emit(said.ModelSaved(path=str(folder)))


if __name__ == "__main__":
    sys.exit(main())
