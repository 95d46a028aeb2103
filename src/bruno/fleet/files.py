"""Copying to and from a machine over SFTP: resumable, hashes compared on both sides, nothing half-done under a final name.

A folder grows beside its final place as `NAME.part/`, where each unfinished file is `FILE.part`; a finished file is one whose
sha256, computed here while it arrived, equals the one the machine computed. Only then is it renamed, and the folder last of all.
Remote names are hostile: none may lead out of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING

from bruno.errors import InputError
from bruno.fleet.errors import Cancelled, DiskFull, TransferFailed
from bruno.fleet.host import Host
from bruno.guard.sanitise import safe_line

if TYPE_CHECKING:
    import paramiko

WINDOW = 64 << 20
"""Bytes asked for ahead. Between windows the line rests for one round trip."""
_REQUEST = 32 << 10  # the SFTP protocol's customary piece
_MARGIN = 64 << 20  # left free on our disk: a disk filled to the last byte hurts everything else
_SLOWEST_HASH = 20e6  # bytes per second: below that a machine is taken to hang
_LIST = r"""cd -- "$1" && exec find -L . -type f -printf '%s %P\0'"""


@dataclass(frozen=True)
class Progress:
    """Where a copy is. Bytes; `file` is the relative path under way."""

    file: str
    done: int
    total: int
    files_done: int
    files_total: int


@dataclass(frozen=True)
class FetchReport:
    """What a finished copy brought. `resumed` bytes were there already."""

    folder: Path
    files: int
    bytes: int
    resumed: int
    sha256: dict[str, str]
    """Relative path -> hex digest, equal on both sides."""


OnProgress = Callable[[Progress], None]


@dataclass
class _Copy:
    """One copy under way: what there is to do and how far it is."""

    sizes: dict[str, int]
    on_progress: OnProgress | None
    cancel: Event | None
    done: int = 0
    resumed: int = 0
    sha256: dict[str, str] = field(default_factory=dict)

    def tell(self, file: str) -> None:
        """Report progress, and stop here when the person called it off."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(
                f"the copy was called off at {safe_line(file, 80)}; what arrived is kept and can be taken up again"
            )
        if self.on_progress is not None:
            total = sum(self.sizes.values())
            self.on_progress(Progress(file, self.done, total, len(self.sha256), len(self.sizes)))


def fetch(
    host: Host,
    remote_folder: str,
    local_folder: Path,
    on_progress: OnProgress | None = None,
    cancel: Event | None = None,
) -> FetchReport:
    """Copy a folder home. It appears under `local_folder` only when every file's hash agrees.

    Until then it grows in `NAME.part` beside it, and a second call goes on from there. Already home with the same hashes: done.

    Raises:
        TransferFailed: no such folder, an empty one, a name that leads out of it, or a file that does not arrive unchanged.
        DiskFull: no room here; what arrived is kept.
        InputError: `local_folder` exists with other content.
        Cancelled, HostLost, CommandTimedOut.
    """
    copy = _Copy(_list(host, remote_folder), on_progress, cancel)
    if local_folder.exists():
        return _already_home(host, remote_folder, local_folder, copy)
    staging = local_folder.with_name(f"{local_folder.name}.part")
    with _local_disk(staging):
        staging.mkdir(parents=True, exist_ok=True)
        _forget_others(staging, copy.sizes)
        _need_room(staging, copy.sizes)
        with host.transfers() as sftp:
            for name, size in copy.sizes.items():
                source = f"{remote_folder}/{name}"
                wanted = _remote_hash(host, source, size)
                _fetch_file(sftp, source, staging / name, name, wanted, copy)
                copy.sha256[name] = wanted
                copy.tell(name)
        staging.rename(local_folder)
        _sync_folder(local_folder.parent)
    return FetchReport(local_folder, len(copy.sizes), sum(copy.sizes.values()), copy.resumed, copy.sha256)


def send(
    host: Host,
    local: Path,
    remote: str,
    on_progress: OnProgress | None = None,
    cancel: Event | None = None,
) -> FetchReport:
    """Copy one file to the machine under exactly this name: resumable, hash checked, renamed into place when whole.

    A file that is there already with the same hash is left as it is.

    Raises:
        InputError: no such local file.
        DiskFull, TransferFailed, Cancelled, HostLost, CommandTimedOut.
    """
    if not local.is_file():
        raise InputError(f"there is no file {local}")
    size = local.stat().st_size
    copy = _Copy({local.name: size}, on_progress, cancel)
    digest = _hash(local, size).hexdigest()
    copy.sha256[local.name] = digest
    report = FetchReport(local.parent, 1, size, 0, copy.sha256)
    if host.exists(remote) and _remote_hash(host, remote, size) == digest:
        return report
    host.make_folder(str(PurePosixPath(remote).parent))
    part = f"{remote}.part"
    for attempt in range(2):
        try:
            _send_bytes(host, local, part, size, copy)
        except TransferFailed:
            _blame_disk(host, part)
            raise
        if _remote_hash(host, part, size) == digest:
            with host.sftp(f"put {remote} in place") as sftp:
                sftp.posix_rename(part, remote)
            return FetchReport(local.parent, 1, size, copy.resumed if attempt == 0 else 0, copy.sha256)
        with host.sftp(f"remove {part}") as sftp:
            sftp.remove(part)  # its beginning was from another file, or spoilt
    _blame_disk(host, part)
    raise TransferFailed(
        f"{local.name} does not arrive unchanged on instance {host.instance_id}", fix="Look at the machine's disk"
    )


def _list(host: Host, folder: str) -> dict[str, int]:
    """Relative path -> bytes of every file below a remote folder, in a steady order."""
    result = host.run(["bash", "-c", _LIST, "bruno-list", folder])
    if not result.ok:
        said = safe_line(result.stderr) or f"exit code {result.exit_code}"
        raise TransferFailed(f"could not list {folder} on instance {host.instance_id}: {said}")
    sizes: dict[str, int] = {}
    for row in result.stdout.split("\0")[:-1]:
        size, _, name = row.partition(" ")
        if not size.isdigit() or not name or not _stays_inside(name):
            raise TransferFailed(
                f"{folder} on instance {host.instance_id} holds a file with an unfit name ({safe_line(name, 80)!r})"
            )
        sizes[name] = int(size)
    if not sizes:
        raise TransferFailed(f"{folder} on instance {host.instance_id} holds no files")
    return dict(sorted(sizes.items()))


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    # `.part` would collide with our own unfinished files, and "\\" is a separator on other systems.
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.suffix != ".part"


def _fetch_file(sftp: paramiko.SFTPClient, source: str, target: Path, name: str, wanted: str, copy: _Copy) -> None:
    """Bring one file to `target`, going on from what is there of it."""
    size = copy.sizes[name]
    if target.is_file() and target.stat().st_size == size and _hash(target, size).hexdigest() == wanted:
        copy.done += size
        copy.resumed += size
        return
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for _ in range(2):
        before = copy.done
        if _receive(sftp, source, part, name, copy) == wanted:
            part.rename(target)
            return
        part.unlink()  # spoilt, or its beginning was from another file: once more from the start
        copy.done = before
    raise TransferFailed(
        f"{safe_line(name)} does not arrive unchanged", fix="The file may still be being written: try again later"
    )


def _receive(sftp: paramiko.SFTPClient, source: str, part: Path, name: str, copy: _Copy) -> str:
    """Append what is missing of `source` to `part`; the hex digest of the whole."""
    size = copy.sizes[name]
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    digest = _hash(part, have) if have else hashlib.sha256()
    copy.done += have
    copy.resumed += have
    copy.tell(name)
    with part.open("ab") as sink, sftp.open(source, "rb") as file:
        for start in range(have, size, WINDOW):
            end = min(start + WINDOW, size)
            pieces = [(at, min(_REQUEST, end - at)) for at in range(start, end, _REQUEST)]
            for piece in file.readv(pieces):
                sink.write(piece)
                digest.update(piece)
                copy.done += len(piece)
                copy.tell(name)
        sink.flush()
        os.fsync(sink.fileno())
    return digest.hexdigest()


def _send_bytes(host: Host, local: Path, part: str, size: int, copy: _Copy) -> None:
    """Append what is missing of `local` to the remote `part`."""
    with host.transfers() as sftp, local.open("rb") as source:
        try:
            have = min(sftp.stat(part).st_size or 0, size)
        except FileNotFoundError:
            have = 0
        copy.done = copy.resumed = have
        _blame_disk(host, part, needed=size - have)
        with sftp.open(part, "r+b" if have else "wb") as sink:
            sink.set_pipelined(True)
            source.seek(have)
            sink.seek(have)
            while piece := source.read(_REQUEST):
                sink.write(piece)
                copy.done += len(piece)
                copy.tell(local.name)


def _blame_disk(host: Host, path: str, needed: int = 1 << 20) -> None:
    """Raise DiskFull when the machine says that `needed` bytes have no room beside `path`. SFTP itself only says "Failure"."""
    room = host.free_disk(str(PurePosixPath(path).parent))
    if room is not None and room < needed:
        raise DiskFull(
            f"the disk of instance {host.instance_id} has {room / 1e9:.2f} GB free, too little for {PurePosixPath(path).name}",
            fix="Free some room on the machine, then go on",
        )


def _already_home(host: Host, remote_folder: str, local_folder: Path, copy: _Copy) -> FetchReport:
    """The report of a folder that is home already. Raises InputError when it is not this one."""
    here = {path.relative_to(local_folder).as_posix() for path in local_folder.rglob("*") if path.is_file()}
    for name, size in copy.sizes.items():
        path = local_folder / name
        wanted = _remote_hash(host, f"{remote_folder}/{name}", size)
        if name not in here or path.stat().st_size != size or _hash(path, size).hexdigest() != wanted:
            raise InputError(
                f"{local_folder} exists and is not what is on the machine", fix="Move it away, or choose another folder"
            )
        copy.sha256[name] = wanted
        copy.done += size
        copy.tell(name)
    total = sum(copy.sizes.values())
    return FetchReport(local_folder, len(copy.sizes), total, total, copy.sha256)


def _remote_hash(host: Host, path: str, size: int) -> str:
    return host.sha256(path, timeout=60 + size / _SLOWEST_HASH)


def _hash(path: Path, size: int) -> hashlib._Hash:
    """sha256 of the first `size` bytes of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size
        while left and (piece := file.read(min(1 << 20, left))):
            digest.update(piece)
            left -= len(piece)
    return digest


def _need_room(staging: Path, sizes: dict[str, int]) -> None:
    """Raise DiskFull unless what is still missing fits on our disk."""
    paths = (path for name in sizes for path in (staging / name, staging / f"{name}.part"))
    have = sum(path.stat().st_size for path in paths if path.is_file())
    missing = max(0, sum(sizes.values()) - have)
    free = shutil.disk_usage(staging).free
    if free < missing + _MARGIN:
        raise DiskFull(
            f"the disk of {staging.parent} has {free / 1e9:.2f} GB free, {missing / 1e9:.2f} GB are still to come",
            fix="Free some room, then copy again: it goes on where it stopped",
        )


def _forget_others(staging: Path, sizes: dict[str, int]) -> None:
    """Remove from an earlier attempt what the machine no longer has: it would come home beside the rest."""
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix().removesuffix(".part") not in sizes:
            path.unlink()


@contextmanager
def _local_disk(folder: Path) -> Iterator[None]:
    """A full or unwritable disk of ours, in the room's words."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"the disk of {folder.parent} is full",
                fix="Free some room, then copy again: it goes on where it stopped",
            ) from error
        raise TransferFailed(f"could not write to {folder}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
