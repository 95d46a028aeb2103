"""A machine's file brought home by offset: `bring` appends what it has and ours has not. Touches the local file and its mark.

Ours may be cut off anywhere (a kill, a full disk) and goes on from its own size. Beside it lies a small mark that says which
remote file it follows since which of its own bytes; the mark's time is when the machine was last asked.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bruno.errors import BrunoError

if TYPE_CHECKING:
    from bruno.fleet.host import Host

MOST_PER_CALL = 8 << 20
"""Bytes brought at one go: a flood of output must not starve the rest of a poll."""
_PIECE = 1 << 20


def bring(host: Host, remote: str, local: Path) -> int:
    """Append to `local` what the machine's file `remote` has beyond what was brought before; how many bytes came.

    A file that was truncated or replaced, and another `remote` (a second launch writes its own), are appended whole, on a
    line of their own. A file that is not there yet brings nothing.

    Raises:
        HostLost: the link broke; call again. BrunoError: `local` cannot be written (naming it).
    """
    local.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with local.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two consoles may follow one run; appending twice would tell it twice
            file.seek(0, os.SEEK_END)
            return _append(host, remote, file, local)
    except OSError as error:
        raise BrunoError(f"{local} cannot be written: {error.strerror or error}", fix="Free some disk space") from error


def mark_of(local: Path) -> Path:
    """Where the mark of `local` lies."""
    return local.with_name(local.name + ".tail")


def _append(host: Host, remote: str, file: IO[bytes], local: Path) -> int:
    mark = _read_mark(file, local, remote)
    came = 0
    while came < MOST_PER_CALL:
        offset = file.tell() - mark["base"]
        chunk = host.read_from(remote, offset, _PIECE)
        if chunk is None:
            break
        another = None not in (chunk.inode, mark["inode"]) and chunk.inode != mark["inode"]
        if another or chunk.size < offset:
            mark = _start_over(file, local, remote, chunk.inode)
            continue
        if mark["inode"] is None and chunk.inode is not None:
            mark = {**mark, "inode": chunk.inode}
            _write_mark(local, mark)
        if not chunk.data:
            break
        file.write(chunk.data)
        file.flush()
        came += len(chunk.data)
    os.utime(mark_of(local))
    return came


def _start_over(file: IO[bytes], local: Path, remote: str, inode: int | None) -> dict[str, Any]:
    """Begin another remote file after what `local` has, on a line of its own."""
    if file.tell() and _last_byte(local) != b"\n":
        file.write(b"\n")
        file.flush()
    mark = {"remote": remote, "base": file.tell(), "inode": inode}
    _write_mark(local, mark)
    return mark


def _read_mark(file: IO[bytes], local: Path, remote: str) -> dict[str, Any]:
    """The mark, written before the first byte of `remote` is brought."""
    try:
        mark = json.loads(mark_of(local).read_text())
        if mark["remote"] == remote and mark["base"] <= file.tell():
            return {"inode": None, **mark}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # never followed, or the mark is broken: what is there is kept, and the remote file follows it whole
    return _start_over(file, local, remote, None)


def _write_mark(local: Path, mark: dict[str, Any]) -> None:
    beside = mark_of(local).with_suffix(".new")
    beside.write_text(json.dumps(mark))
    beside.replace(mark_of(local))


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
