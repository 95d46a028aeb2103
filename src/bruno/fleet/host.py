"""One instance over SSH (Fabric), behind a small interface (skeleton)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event

from bruno.fleet.clocks import Clock, Sleep, real_sleep, utc_now
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair
from bruno.fleet.models import Instance


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself on the machine. Texts are hostile until sanitised."""

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
    """An open connection to one instance. One thread at a time (an own lock makes others wait). A context manager."""

    instance_id: int

    def identify(self) -> str:
        """The label file's text, which equals `C.<instance id>`. Raises WrongHost otherwise, HostLost."""
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, timeout: float = 60, env: Mapping[str, str] | None = None) -> Completed:
        """Run a command and wait. Each item reaches the program unchanged (quoted with shlex). A non-zero exit is returned, not raised.

        `env` is visible in the machine's process table: no secrets. Raises HostLost, CommandTimedOut.
        """
        raise NotImplementedError

    def read_from(self, path: str, offset: int = 0, limit: int = 1 << 20) -> Chunk | None:
        """Up to `limit` bytes from `offset`; None when there is no such file (yet). Raises HostLost."""
        raise NotImplementedError

    def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a small file through a temporary name and a rename. Raises HostLost, DiskFull, TransferFailed."""
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        """Whether the path exists. Raises HostLost (never False for "could not look")."""
        raise NotImplementedError

    def make_folder(self, path: str) -> None:
        """mkdir -p. Raises TransferFailed, HostLost."""
        raise NotImplementedError

    def sha256(self, path: str) -> str:
        """Hex digest computed on the machine. Raises TransferFailed, HostLost."""
        raise NotImplementedError

    def free_disk(self, path: str) -> int | None:
        """Free bytes of the file system that holds `path`; None when the machine cannot say."""
        raise NotImplementedError

    def workspace(self) -> str:
        """The folder for bruno's files: the machine's `WORKSPACE` when set, else `/workspace`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the link. Detached jobs go on."""
        raise NotImplementedError

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
    """Open a checked link: direct endpoint first, then the proxy, again for `patience` seconds while sshd or the key may be late.

    The host key must equal the one pinned for this instance id; the first one is pinned once the label file agrees.

    Raises: HostRefused (with what each endpoint said), HostKeyChanged, WrongHost, Cancelled.
    """
    raise NotImplementedError
