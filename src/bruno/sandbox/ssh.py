"""The SSH server of one instance: two ports on loopback, a pinned host key, keys from `~/.ssh/authorized_keys`.

The proxy port exists all the instance's life and, while nothing runs behind it, accepts a connection and closes it, as
the provider's proxy does. The direct port is known when the container runs and refuses until SSH answers. Needs asyncssh;
opens sockets on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from bruno.sandbox import shell
from bruno.sandbox.folder import InstanceFolder

LOOPBACK = "127.0.0.1"
USER = "root"
_BANNER = (
    "Welcome to vast.ai. If authentication fails, try again after a few seconds, and double check your ssh key.\n"
    "(This is the bruno sandbox: an emulated machine on loopback.)\n"
)
log = logging.getLogger(__name__)


class Door:
    """A port on loopback. Bound it refuses connections; listening it hands every one to `visitor`."""

    def __init__(self, port: int | None, visitor: Callable[[socket.socket], Awaitable[None]]) -> None:
        self._visitor = visitor
        self._task: asyncio.Task[None] | None = None
        self._visits: set[asyncio.Future[None]] = set()  # asyncio itself holds its tasks only weakly
        self._socket = bind(port)
        self.port: int = self._socket.getsockname()[1]

    def listen(self) -> None:
        """Begin to accept; nothing if it does already."""
        if self._task is None:
            self._socket.listen(50)
            self._task = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            connection.setblocking(False)
            visit = asyncio.ensure_future(self._visitor(connection))
            self._visits.add(visit)
            visit.add_done_callback(self._visits.discard)

    def close(self) -> None:
        """Give the port back."""
        if self._task is not None:
            self._task.cancel()
        self._socket.close()


def bind(port: int | None) -> socket.socket:
    """A socket bound on loopback: to `port` if that is free, else to any free port."""
    for wanted in (port, 0) if port else (0,):
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setblocking(False)
        try:
            if wanted:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((LOOPBACK, wanted))
        except OSError:
            bound.close()
            if not wanted:
                raise
            continue
        # Set afterwards for a fresh port, so the kernel gives one nobody has; before, to take ours back after a restart.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return bound
    raise AssertionError("unreachable: port 0 either binds or raises")


class InstanceSSH:
    """The two doors of an instance and the connections that came through them.

    Args:
        folder: the instance's folder.
        admit: asked at every connection; False closes it without a word.
        file_size_limit: asked at every process and upload; bytes, or None.
    """

    def __init__(
        self, folder: InstanceFolder, *, admit: Callable[[], bool], file_size_limit: Callable[[], int | None]
    ) -> None:
        self.folder = folder
        self.answering = False
        self.proxy: Door | None = None
        self.direct: Door | None = None
        self._admit = admit
        self._limit = file_size_limit
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._options: asyncssh.SSHServerConnectionOptions | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def open_proxy(self, port: int | None) -> int:
        """Open the proxy door, on `port` if it is free. Returns the port."""
        if self.proxy is None:
            self.proxy = Door(port, self._visit)
            self.proxy.listen()
        return self.proxy.port

    def open_direct(self, port: int | None) -> int:
        """Take the direct port, on `port` if it is free; it refuses until `answer`. Returns the port."""
        if self.direct is None:
            self.direct = Door(port, self._visit)
        return self.direct.port

    def answer(self) -> None:
        """SSH is up."""
        self.answering = True
        if self.direct is not None:
            self.direct.listen()

    def fall_silent(self) -> None:
        """The container is down: every connection is cut and the direct port given back."""
        self.answering = False
        if self.direct is not None:
            self.direct.close()
            self.direct = None
        self.drop()

    def drop(self) -> None:
        """Cut every open connection, without a goodbye."""
        for connection in list(self._connections):
            connection.abort()

    def close(self) -> None:
        """Shut both doors for good."""
        self.fall_silent()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None

    def change_host_key(self) -> None:
        """A new host key, as after a reinstall, or with somebody else's machine on this address."""
        self.folder.host_key.unlink(missing_ok=True)
        self._options = None

    def _server_options(self) -> asyncssh.SSHServerConnectionOptions:
        if self._options is None:
            if not self.folder.host_key.exists():
                key = asyncssh.generate_private_key("ssh-ed25519")
                self.folder.host_key.touch(mode=0o600)
                key.write_private_key(self.folder.host_key)
            self._options = asyncssh.SSHServerConnectionOptions(
                server_factory=lambda: _Gatekeeper(self),
                server_host_keys=[asyncssh.read_private_key(self.folder.host_key)],
                process_factory=self._process,
                sftp_factory=lambda channel: _InstanceFiles(channel, self.folder, self._limit),
                allow_scp=True,
                encoding=None,
                line_editor=False,
                login_timeout=20,
                gss_host=None,
            )
        return self._options

    async def _visit(self, connection: socket.socket) -> None:
        if not self.answering or not self._admit():
            connection.close()
            return
        try:
            server = await asyncssh.run_server(connection, options=self._server_options())
        except (OSError, asyncssh.Error) as error:
            log.info("instance %s: handshake failed: %s", self.folder.id, error)
            connection.close()
            return
        await server.wait_closed()

    async def _process(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        await shell.serve(process, self.folder, self._limit())

    def entered(self, connection: asyncssh.SSHServerConnection) -> None:
        """A client's TCP connection is open."""
        self._connections.add(connection)

    def left(self, connection: asyncssh.SSHServerConnection) -> None:
        """A client has gone."""
        self._connections.discard(connection)


class _Gatekeeper(asyncssh.SSHServer):
    """Who may come in: `root`, with a key that is in `~/.ssh/authorized_keys` at that moment."""

    def __init__(self, ssh: InstanceSSH) -> None:
        self._ssh = ssh

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._ssh.entered(conn)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncssh's signature
        self._ssh.left(self._connection)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002 asyncssh's signature
        issue = self._ssh.folder.issue
        self._connection.send_auth_banner(_BANNER + (issue.read_text("utf-8") if issue.is_file() else ""))
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if username != USER:
            return False
        offered = key.export_public_key().decode().split()[:2]
        lines = self._ssh.folder.authorized_keys().splitlines()
        return any(line.split()[:2] == offered for line in lines)


class _InstanceFiles(asyncssh.SFTPServer):
    """SFTP with the paths a process on the instance sees; relative ones start in the home folder."""

    def __init__(self, channel: Any, folder: InstanceFolder, limit: Callable[[], int | None]) -> None:
        super().__init__(channel)
        self._home = os.fsencode(folder.home)
        self._limit = limit

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(self._home, path)  # noqa: PTH118 bytes paths; an absolute path wins over the home folder

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        limit = self._limit()
        if limit is not None and offset + len(data) > limit:
            raise asyncssh.SFTPFailure("No space left on device")
        return super().write(file_obj, offset, data)  # type: ignore[return-value]  # the base class is synchronous
