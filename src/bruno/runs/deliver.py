"""The steps that bring the result home: is the saved model whole on the machine, then the copy with its hashes compared."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humanize import naturalsize

from bruno.errors import RunFailed
from bruno.fleet import files
from bruno.fleet.host import Host
from bruno.guard.sanitise import safe_line
from bruno.runs import playbook as book
from bruno.runs.events import Kind
from bruno.runs.home import read_home
from bruno.runs.job import Places, engine_settings

if TYPE_CHECKING:
    from bruno.runs.task import Task

Detail = dict[str, Any]
INDEX = "model.safetensors.index.json"
TELL_EVERY = timedelta(seconds=1)
_REPORT_BYTES = 4 << 20
_LIST = ["find", "-L"]
_FIELDS = ["-maxdepth", "1", "-type", "f", "-printf", "%s %f\\n"]


def verify(task: Task, _step: book.Verify) -> Detail:
    """The log's `Models Saved` folder holds a config and every shard its index names, none empty; the report comes home.

    Raises:
        RunFailed: no model was saved, or it is not whole (naming the file).
    """
    task.on_host(lambda host: _bring_report(host, Places.of(host, task.run_id), task.home))
    if not engine_settings(task).export.save:
        return {"skipped": "the settings save no model (export.save is off)"}
    saved = read_home(task.home).progress.model_saved
    if saved is None:
        raise RunFailed("the engine ended without saving a model: its log has no line 'Models Saved'")
    places = task.on_host(lambda host: Places.of(host, task.run_id))
    if not saved.startswith(f"{places.root}/") or ".." in saved.split("/"):
        # A log is text from a machine; it does not choose what is copied home.
        raise RunFailed(f"the log names a model outside the run's folder: {safe_line(saved)}", fix="Look at the log")
    sizes, wanted = task.on_host(lambda host: _look(host, saved))
    missing = [name for name in wanted if not sizes.get(name)]
    if missing:
        raise RunFailed(f"the model at {saved} is not whole: {', '.join(missing[:3])} missing or empty")
    task.world.records.update_run(task.run_id, remote_model=saved)
    total = sum(sizes.values())
    task.tell(Kind.NOTICE, f"the model at {saved} is whole: {len(sizes)} files, {naturalsize(total)}")
    return {"model": saved, "files": len(sizes), "bytes": total}


def fetch(task: Task, _step: book.Fetch) -> Detail:
    """Copy the saved model home. Resumable; it appears under its name only when every hash agrees."""
    saved = task.run.remote_model
    if saved is None:
        return {"skipped": "no model was saved"}
    local = task.world.paths.models / task.run_id
    told = task.world.clock() - TELL_EVERY

    def progress(copy: files.Progress) -> None:
        nonlocal told
        if task.world.clock() - told >= TELL_EVERY or copy.files_done == copy.files_total:
            told = task.world.clock()
            text = f"copying home: {naturalsize(copy.done)} of {naturalsize(copy.total)} ({copy.file})"
            task.tell(Kind.TRANSFER, text, done_bytes=copy.done, total_bytes=copy.total)

    report = task.on_host(lambda host: files.fetch(host, saved, local, progress, task.cancel))
    task.world.records.update_run(task.run_id, local_model=str(report.folder))
    task.tell(Kind.NOTICE, f"the model is home: {report.folder} ({report.files} files, all hashes agree)")
    return {"folder": str(report.folder), "bytes": report.bytes, "sha256": report.sha256}


def _look(host: Host, folder: str) -> tuple[dict[str, int], list[str]]:
    """Sizes of the files in the folder, and the names that must be among them."""
    listing = host.run([*_LIST, folder, *_FIELDS])
    if not listing.ok:
        raise RunFailed(f"there is no folder {folder} on the machine, although the log says that the model was saved")
    rows = (line.split(" ", 1) for line in listing.stdout.splitlines() if " " in line)
    sizes = {name: int(size) for size, name in rows if size.isdigit()}
    wanted = ["config.json"]
    if INDEX in sizes:
        chunk = host.read_from(f"{folder}/{INDEX}", 0, sizes[INDEX])
        try:
            wanted += sorted(set(json.loads(chunk.data if chunk else b"")["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFailed(f"{folder}/{INDEX} cannot be read: {error}") from error
    else:
        wanted.append("model.safetensors")
    return sizes, wanted


def _bring_report(host: Host, places: Places, home: Path) -> None:
    """The engine's report.json, when it wrote one."""
    chunk = host.read_from(f"{places.out}/report.json", 0, _REPORT_BYTES)
    if chunk is not None and len(chunk.data) == chunk.size:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "report.json").write_bytes(chunk.data)
