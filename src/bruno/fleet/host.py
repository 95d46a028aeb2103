"""One instance over SSH: commands, small files, facts, once it has proved to be the one meant. Touches only that machine.

`connect` tries the endpoints, holds the host key against the pinned one and reads the label file, before anything else is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from threading import Event
from typing import TYPE_CHECKING

from bruno.errors import BrunoError
from bruno.fleet.clocks import Clock, Sleep, real_sleep, utc_now
from bruno.fleet.errors import Cancelled, DiskFull, HostLost, HostRefused, TransferFailed, WrongHost
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair
from bruno.fleet.link import Completed, Link
from bruno.fleet.models import Endpoint, Instance
from bruno.guard.sanitise import safe_line

if TYPE_CHECKING:
    from fabric import Connection

__all__ = ["Chunk", "Completed", "Host", "connect"]

LABEL_FILE = ".vast_containerlabel"
"""In the login folder of every instance, holding `C.<id>`. Environment variables are not visible over SSH; this file is."""
_RETRY_SECONDS = 3.0
_HEAD = 64  # first bytes of a followed file: when they differ, it is another file, whatever its size
_DF_ROW = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s+/")  # size, used, available, percent, mount point
_WORKSPACE = 'printf %s "${WORKSPACE:-/workspace}"'


@dataclass(frozen=True)
class Chunk:
    """A piece of a remote file. `data` starts at `offset`; `size` is the file's size then; a new `inode` means another file."""

    data: bytes
    offset: int
    size: int
    inode: int | None


class Host(Link):
    """An open, checked link to one instance. Made by `connect`."""

    def __init__(self, connection: Connection, instance_id: int, endpoint: Endpoint) -> None:
        super().__init__(connection, instance_id, endpoint)
        self._known: dict[str, tuple[int | None, int, bytes]] = {}

    def identify(self) -> str:
        """The label file's text, which equals `C.<instance id>`.

        Raises:
            WrongHost: it says something else, or there is none: this is not the machine meant.
            HostLost.
        """
        chunk = self.read_from(LABEL_FILE, limit=200)
        label = None if chunk is None else chunk.data.decode("utf-8", "replace").strip()
        if label is None or label != f"C.{self.instance_id}":
            raise _wrong_host(label, self.instance_id, self.endpoint)
        return label

    def read_from(self, path: str, offset: int = 0, limit: int = 1 << 20) -> Chunk | None:
        """Up to `limit` bytes from `offset`; None when there is no such file (yet). A few milliseconds: made for following a log.

        An `offset` beyond the end gives no data: compare `size` and `inode` to see that the file was cut or replaced.

        Raises: HostLost, TransferFailed.
        """
        with self.sftp(f"read {path}") as sftp:
            try:
                with sftp.open(path, "rb") as file:
                    size = file.stat().st_size or 0
                    head = file.read(min(_HEAD, size))
                    wanted = max(0, min(limit, size - offset))
                    file.seek(offset)
                    if wanted > file.MAX_REQUEST_SIZE:
                        file.prefetch(offset + wanted)
                    data = file.read(wanted) if wanted else b""
            except FileNotFoundError:
                return None
        return Chunk(data, offset, size, self._inode(path, size, head))

    def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a small file, whole or not at all. Raises HostLost, DiskFull, TransferFailed."""
        temporary = f"{path}.new"
        with self.sftp(f"write {path}") as sftp:
            try:
                with sftp.open(temporary, "wb") as file:
                    file.chmod(mode)  # before there is anything to read in it
                    file.write(data)
                sftp.posix_rename(temporary, path)
            except FileNotFoundError as error:
                raise self._failed(error, f"write {path}") from error

    def exists(self, path: str) -> bool:
        """Whether the path exists. Raises HostLost, TransferFailed: never False for "could not look"."""
        with self.sftp(f"look for {path}") as sftp:
            try:
                sftp.stat(path)
            except FileNotFoundError:
                return False
        return True

    def make_folder(self, path: str) -> None:
        """mkdir -p. Raises HostLost, DiskFull, TransferFailed."""
        self._done(self.run(["mkdir", "-p", "--", path]), f"make the folder {path}")

    def sha256(self, path: str, *, timeout: float = 600) -> str:
        """Hex digest computed on the machine. Raises TransferFailed, HostLost, CommandTimedOut."""
        # From stdin, since sha256sum escapes odd names in its output.
        result = self.run(["bash", "-c", 'exec sha256sum < "$1"', "bash", path], timeout=timeout)
        self._done(result, f"hash {path}")
        digest = result.stdout.split(" ", 1)[0]
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise TransferFailed(f"the machine gave no hash of {path}")
        return digest

    def free_disk(self, path: str) -> int | None:
        """Free bytes of the file system that holds `path`; None when the machine cannot say. Raises HostLost."""
        result = self.run(["df", "-P", "-B1", "--", path])
        row = _DF_ROW.search(result.stdout) if result.ok else None
        return int(row[1]) if row else None

    def workspace(self) -> str:
        """The folder for bruno's files: the machine's `WORKSPACE` when set, else `/workspace`. Raises as `run`."""
        result = self.run(["bash", "-c", _WORKSPACE])
        if not result.ok or not result.stdout.startswith("/"):
            raise TransferFailed(
                f"instance {self.instance_id} names no absolute WORKSPACE ({safe_line(result.stdout)})"
            )
        return result.stdout

    def _inode(self, path: str, size: int, head: bytes) -> int | None:
        """Which file this is. SFTP has no inodes, so `stat` is asked, but only for a new, shorter or other file."""
        inode, last_size, last_head = self._known.get(path, (None, -1, b""))
        same = inode is not None and size >= last_size and head.startswith(last_head)
        if not same:
            result = self.run(["stat", "-c", "%i", "--", path])
            inode = int(result.stdout) if result.ok and result.stdout.strip().isdigit() else None
        self._known[path] = (inode, size, head)
        return inode

    def _done(self, result: Completed, doing: str) -> None:
        if result.ok:
            return
        said = safe_line(result.stderr) or f"exit code {result.exit_code}"
        kind = DiskFull if "No space left" in result.stderr else TransferFailed
        raise kind(f"could not {doing} on instance {self.instance_id}: {said}")


def connect(
    instance: Instance,
    key: KeyPair,
    host_keys: HostKeys,
    *,
    patience: float = 120,
    clock: Clock = utc_now,
    sleep: Sleep = real_sleep,
    cancel: Event | None = None,
) -> Host:
    """Open a checked link: direct endpoint first, then the proxy, again for `patience` seconds.

    A young instance refuses for a while although it "runs": sshd comes up late, the proxy accepts and closes, the key
    takes time to arrive. The host key must equal the one pinned for this id; the first is pinned once the label agrees.

    Raises:
        HostRefused: what each endpoint said last.
        HostKeyChanged, WrongHost: it is not the machine meant; not tried again.
        Cancelled.
    """
    deadline = clock() + timedelta(seconds=patience)
    while True:
        refusals: list[BrunoError] = []
        for endpoint in instance.endpoints:
            try:
                return _open(endpoint, instance.id, key, host_keys)
            except (HostRefused, HostLost) as error:
                refusals.append(error)
        if not refusals:
            raise HostRefused(f"the provider shows no SSH address for instance {instance.id}", fix="Wait until it runs")
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"connecting to instance {instance.id} was called off")
        if clock() >= deadline:
            said = "; ".join(error.message for error in refusals)
            fix = next(
                (error.fix for error in refusals if error.fix), "It may still be starting: try again in a minute"
            )
            raise HostRefused(f"cannot reach instance {instance.id} by SSH: {said}", fix=fix)
        sleep(_RETRY_SECONDS)


def _open(endpoint: Endpoint, instance_id: int, key: KeyPair, host_keys: HostKeys) -> Host:
    from bruno.fleet.ssh import open_link  # Fabric takes a while to import

    pinned = host_keys.get(instance_id)
    connection, shown = open_link(endpoint, key, pinned, instance_id)
    host = Host(connection, instance_id, endpoint)
    try:
        host.identify()
        if pinned is None:
            host_keys.pin(instance_id, shown)
    except FileExistsError:
        host.close()  # another console pinned one just now; ours must agree with it
        return _open(endpoint, instance_id, key, host_keys)
    except BaseException:
        host.close()
        raise
    return host


def _wrong_host(label: str | None, instance_id: int, endpoint: Endpoint) -> WrongHost:
    says = "carries no label file" if label is None else f"says it is {safe_line(label, 40)!r}"
    return WrongHost(
        f"the machine at {endpoint.host}:{endpoint.port} is not instance {instance_id}: it {says}",
        fix="Nothing was done there. Read the instance's address again from the provider",
    )
