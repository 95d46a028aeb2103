"""The run's folder: one engine at a time, and files that are whole or not there.

Layout: `events.jsonl`, `study.sqlite3`, `directions.safetensors`, `report.json`, `libraries.log`, `engine.lock`, and
one folder for each saved model; in `workers`, one for each worker process of this machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from bruno.errors import BrunoError, InputError

if TYPE_CHECKING:
    from bruno.engine.directions.find import DirectionSet

DIRECTIONS_FILE = "directions.safetensors"
STUDY_FILE = "study.sqlite3"
REPORT_FILE = "report.json"
LIBRARIES_FILE = "libraries.log"
PID_FILE = "engine.pid"
WORKERS_FOLDER = "workers"


class FolderInUse(BrunoError):
    """Another engine works in this folder; two would tell one study two stories."""


@contextmanager
def run_folder(path: Path) -> Iterator[Path]:
    """Make the folder and hold its lock. The system frees the lock when the process ends, however it ends.

    Raises:
        FolderInUse: another process holds it.
        InputError: the folder cannot be made or written.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "engine.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        holder = path / PID_FILE
        who = f" (process {holder.read_text().strip()})" if holder.exists() else ""
        raise FolderInUse(
            f"The run folder {path} is in use by another engine{who}", fix="Wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise InputError(
            f"The run folder {path} cannot be used ({error.strerror})", fix="Choose another --out"
        ) from error
    try:
        write_whole(path / PID_FILE, lambda target: target.write_text(f"{os.getpid()}\n"))
        yield path
    finally:
        (path / PID_FILE).unlink(missing_ok=True)
        lock.release()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, then rename it there: a crash leaves the old file or the new
    one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, lambda target: target.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def save_directions(folder: Path, directions: DirectionSet, key: str) -> None:
    """Keep the directions of a run, so that a resume needs no second capture. `key` says what they were made from."""
    import torch
    from safetensors.torch import save_file

    fields = vars(directions)
    tensors = {name: value.cpu().contiguous() for name, value in fields.items() if isinstance(value, torch.Tensor)}
    values = {name: value for name, value in fields.items() if name not in tensors}
    notes = json.dumps({"key": key, "tensors": sorted(tensors), "values": values})
    write_whole(folder / DIRECTIONS_FILE, lambda target: save_file(tensors, target, metadata={"bruno": notes}))


def load_directions(folder: Path, key: str) -> DirectionSet | None:
    """The directions that were kept under this key; None when there are none, others, or a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    from bruno.engine.directions.find import DirectionSet

    try:
        with safe_open(folder / DIRECTIONS_FILE, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("bruno", "{}"))
            if notes.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in notes["tensors"]}
            values = {**notes["values"], "used": tuple(notes["values"]["used"])}
        return DirectionSet(**tensors, **values)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        # Nothing is lost: they are made again from the prompts, and the log shows the capture. The last two are a file
        # of another version of the engine, with other fields.
        return None
