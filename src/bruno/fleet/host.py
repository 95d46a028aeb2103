"""One instance over SSH, behind a small interface: commands, small files, facts. Fabric does the talking.

Every operation ends: each has its time, after which a watchdog closes the transport from another thread, the one thing that
frees a call stuck on a frozen link (SSH keepalives count no replies). A link that is lost stays lost: nothing here opens it again
by itself, since the address may be somebody else's by then.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, RLock, Timer
from typing import TYPE_CHECKING

from bruno.errors import BrunoError
from bruno.fleet.clocks import Clock, Sleep, real_sleep, utc_now
from bruno.fleet.errors import (
    Cancelled,
    CommandTimedOut,
    DiskFull,
    HostLost,
    HostRefused,
    TransferFailed,
    WrongHost,
)
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair
from bruno.fleet.models import Endpoint, Instance
from bruno.guard.sanitise import safe_line

if TYPE_CHECKING:
    import paramiko
    from fabric import Connection

LABEL_FILE = ".vast_containerlabel"
"""In the login folder of every instance, holding `C.<id>`. Environment variables are not visible over SSH; this file is."""
SFTP_SECONDS = 15.0
_GRACE = 5.0
_RETRY_SECONDS = 3.0
_HEAD = 64  # first bytes of a followed file: when they differ, it is another file, whatever its size
_DF_ROW = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%\s+/")  # size, used, available, percent, mount point
_WORKSPACE = 'printf %s "${WORKSPACE:-/workspace}"'


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself on the machine. Texts are hostile until sanitised, and cut at 1 MiB."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class Chunk:
    """A piece of a remote file. `data` starts at `offset`; `size` is the file's size then; a new `inode` means another file."""

    data: bytes
    offset: int
    size: int
    inode: int | None


class Host:
    """An open, checked link to one instance. Threads wait for each other at its lock. A context manager.

    Made by `connect`.
    """

    def __init__(self, connection: Connection, instance_id: int, endpoint: Endpoint) -> None:
        self.instance_id = instance_id
        self.endpoint = endpoint
        self._connection = connection
        self._lock = RLock()
        self._known: dict[str, tuple[int | None, int, bytes]] = {}

    def __repr__(self) -> str:
        return f"<Host instance {self.instance_id} at {self.endpoint.host}:{self.endpoint.port}>"

    @property
    def connected(self) -> bool:
        """Whether the link was alive when last used. Only an operation tells for sure."""
        return self._connection.is_connected

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

    def run(self, argv: Sequence[str], *, timeout: float = 60, env: Mapping[str, str] | None = None) -> Completed:
        """Run a command and wait for it. A non-zero exit is returned, not raised.

        Args:
            argv: program and arguments. Each reaches the program unchanged: they are quoted, never read by a shell.
            timeout: seconds.
            env: variables for it; they show in the machine's process table, so no secrets.

        Raises:
            HostLost: the link broke, or the command ended without an exit code.
            CommandTimedOut: it may still be running there.
        """
        from invoke.exceptions import CommandTimedOut as InvokeTimedOut
        from invoke.exceptions import Failure, ThreadException

        words = [*(["env", *(f"{name}={value}" for name, value in env.items())] if env else []), *argv]
        doing = f"run {words[0]}"
        with self._link(doing, timeout + _GRACE):
            try:
                # No pty: it kills detached jobs with the session. in_stream=False: else the console's keystrokes go to the
                # command; /dev/null: else that stdin stays open for ever. hide: else its output is painted on the screen.
                result = self._connection.run(
                    f"{shlex.join(words)} < /dev/null",
                    hide=True,
                    in_stream=False,
                    pty=False,
                    warn=True,
                    timeout=timeout,
                    encoding="utf-8",
                )
            except InvokeTimedOut as error:
                raise CommandTimedOut(
                    f"{doing} on instance {self.instance_id} took longer than {timeout:g} s",
                    fix="It may still be running there",
                ) from error
            except (ThreadException, Failure) as error:
                raise self._lost(doing) from error
        if result is None or result.exited == -1:  # "no exit code": the connection went, not the job
            raise self._lost(doing)
        return Completed(tuple(argv), result.exited, result.stdout, result.stderr)

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

    def close(self) -> None:
        """Close the link. Detached jobs go on."""
        # A broken link may fail to close: it is closed all the same, which is what was wanted.
        with contextlib.suppress(OSError, EOFError):
            self._connection.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def sftp(self, doing: str) -> Iterator[paramiko.SFTPClient]:
        """The link's SFTP client for one short operation; its failures become the room's. FileNotFoundError goes through."""
        with self._link(doing, SFTP_SECONDS + _GRACE):
            client = self._connection.sftp()
            channel = client.get_channel()
            if channel is not None:
                channel.settimeout(SFTP_SECONDS)
            yield client

    @contextmanager
    def transfers(self) -> Iterator[paramiko.SFTPClient]:
        """An SFTP client of its own on this link, for a long copy beside other operations. Only its single calls are timed."""
        import paramiko

        with self._translated("copy files"):
            transport = self._connection.transport
            client = None if transport is None else paramiko.SFTPClient.from_transport(transport)
            channel = None if client is None else client.get_channel()
            if client is None or channel is None:
                raise self._lost("copy files")
            channel.settimeout(2 * SFTP_SECONDS)
            try:
                yield client
            finally:
                client.close()

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

    @contextmanager
    def _link(self, doing: str, seconds: float) -> Iterator[None]:
        """The lock, the time limit and the translation of failures around one operation."""
        with self._lock, self._translated(doing):
            transport = self._connection.transport
            if transport is None or not transport.is_active():
                raise self._lost(doing)
            watchdog = Timer(seconds, transport.close)
            watchdog.daemon = True
            watchdog.start()
            try:
                yield
            finally:
                watchdog.cancel()

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        import paramiko

        try:
            yield
        except FileNotFoundError:
            raise
        except (paramiko.SSHException, EOFError, TimeoutError, ConnectionError) as error:
            self.close()  # half-read answers are on it: it cannot be used again
            raise self._lost(doing) from error
        except OSError as error:
            if not self.connected or "closed" in str(error).lower():
                raise self._lost(doing) from error
            # SFTP failures carry no file name, and no error number but for "permission denied": the rest is our own disk's.
            if error.filename is not None or error.errno not in {None, errno.EACCES}:
                raise
            raise self._failed(error, doing) from error

    def _failed(self, error: OSError, doing: str) -> BrunoError:
        text = f"could not {doing} on instance {self.instance_id}: {safe_line(str(error)) or type(error).__name__}"
        # SFTP has no code for a full disk either: some servers say so in words, others only "Failure".
        if "space" in str(error).lower():
            return DiskFull(text, fix="Free some room on the machine, then go on")
        return TransferFailed(text)

    def _lost(self, doing: str) -> HostLost:
        return HostLost(
            f"lost the link to instance {self.instance_id} while trying to {doing}",
            fix="What was started there may still be running: connect again and look",
        )


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
