"""An open SSH link on which every operation ends. Fabric does the talking.

Each operation has its time, after which a watchdog closes the transport from another thread: the one thing that frees a call
stuck on a frozen link, since SSH keepalives count no replies. A link that is lost stays lost; one connects anew.
"""

from __future__ import annotations

import contextlib
import errno
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, Timer
from typing import TYPE_CHECKING, Self

from bruno.errors import BrunoError
from bruno.fleet.errors import CommandTimedOut, DiskFull, HostLost, TransferFailed
from bruno.fleet.models import Endpoint
from bruno.guard.sanitise import safe_line

if TYPE_CHECKING:
    import paramiko
    from fabric import Connection

SFTP_SECONDS = 15.0
"""For one call of an SFTP operation."""
GRACE_SECONDS = 5.0
"""What an operation's own time limit is given before the watchdog ends it."""


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


class Link:
    """One connection to one instance. Threads wait for each other at its lock. A context manager."""

    def __init__(self, connection: Connection, instance_id: int, endpoint: Endpoint) -> None:
        self.instance_id = instance_id
        self.endpoint = endpoint
        self._connection = connection
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} instance {self.instance_id} at {self.endpoint.host}:{self.endpoint.port}>"

    @property
    def connected(self) -> bool:
        """Whether the link was alive when last used. Only an operation tells for sure."""
        return self._connection.is_connected

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
        doing = f"run {argv[0]}"
        with self._link(doing, timeout + GRACE_SECONDS):
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

    def close(self) -> None:
        """Close the link. Detached jobs go on."""
        # A broken link may fail to close: it is closed all the same, which is what was wanted.
        with contextlib.suppress(OSError, EOFError):
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def sftp(self, doing: str) -> Iterator[paramiko.SFTPClient]:
        """The link's SFTP client for one short operation; its failures become the room's. FileNotFoundError goes through."""
        with self._link(doing, SFTP_SECONDS + GRACE_SECONDS):
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

    @contextmanager
    def channel(self, doing: str) -> Iterator[paramiko.Channel]:
        """A channel of its own on this link, for a command that is followed while it runs. The caller sees to its time."""
        with self._translated(doing):
            transport = self._connection.transport
            if transport is None or not transport.is_active():
                raise self._lost(doing)
            channel = transport.open_session(timeout=SFTP_SECONDS)
            try:
                yield channel
            finally:
                channel.close()

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
