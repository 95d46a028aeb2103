"""Opening an SSH link with Fabric so that it can only be the machine meant, and never the person's own keys or settings.

Fabric's defaults are wrong for this: it accepts any host key, keeps none, and reads the person's ssh_config, agent and keys.
Here the key is explicit, nothing is read from the user's folders, and a host key is pinned per instance id. Imports Fabric and
paramiko at once, so it is itself imported only when a link is opened.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import paramiko
from fabric import Config, Connection
from fabric.runners import Remote
from paramiko.ssh_exception import NoValidConnectionsError

from bruno.errors import BrunoError
from bruno.fleet.errors import HostKeyChanged, HostRefused
from bruno.fleet.keys import KeyPair, fingerprint_of
from bruno.fleet.models import Endpoint

CONNECT_SECONDS = 10.0
"""For each stage of opening a link: TCP, banner, authentication, a channel."""
KEEPALIVE_SECONDS = 15
OUTPUT_LIMIT = 1 << 20
"""Bytes of a command's stdout (and of its stderr) that are kept: a machine must not be able to fill our memory."""
CUT = b"\n[more output was left out]\n"


class OneLink(Connection):
    """A connection that is opened once. Fabric's own opens itself again at the next command, perhaps to a stranger."""

    def open(self) -> Any:
        if self.transport is not None and not self.is_connected:
            raise paramiko.SSHException("the link is closed")
        return super().open()


class FirstKey(paramiko.MissingHostKeyPolicy):
    """On first contact any host key is taken; the caller checks the machine's label before it pins it."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Accept."""


class CappedRemote(Remote):
    """Fabric's runner, which keeps no more than `OUTPUT_LIMIT` bytes of each stream and drops the rest as it comes."""

    read_chunk_size = 32 << 10  # 1000 by default, which makes a megabyte of output cost seconds

    def read_proc_stdout(self, num_bytes: int) -> bytes:
        return self._capped("stdout", lambda: self.channel.recv(num_bytes))

    def read_proc_stderr(self, num_bytes: int) -> bytes:
        return self._capped("stderr", lambda: self.channel.recv_stderr(num_bytes))

    def _capped(self, stream: str, receive: Callable[[], bytes]) -> bytes:
        kept: dict[str, int] = self.__dict__.setdefault("_kept", {})
        while data := receive():
            before = kept.get(stream, 0)
            kept[stream] = before + len(data)
            if kept[stream] <= OUTPUT_LIMIT:
                return data
            if before <= OUTPUT_LIMIT:
                return data[: OUTPUT_LIMIT - before] + CUT
        return b""


def open_link(
    endpoint: Endpoint, key: KeyPair, pinned: paramiko.PKey | None, instance_id: int
) -> tuple[Connection, paramiko.PKey]:
    """Connect and authenticate.

    Args:
        pinned: the host key this instance must show; None on first contact, when any is taken and handed back.

    Returns:
        The open connection and the host key that the machine showed.

    Raises:
        HostKeyChanged: another key than the pinned one; nothing was sent.
        HostRefused: no connection, no SSH there yet, or the key is not accepted. `retry` may help.
    """
    connection = _connection(endpoint, key)
    client: paramiko.SSHClient = connection.client  # type: ignore[assignment]  # set by its constructor
    name = endpoint.host if endpoint.port == 22 else f"[{endpoint.host}]:{endpoint.port}"
    if pinned is None:
        client.set_missing_host_key_policy(FirstKey())
    else:
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.get_host_keys().add(name, pinned.get_name(), pinned)
    try:
        connection.open()
        transport = client.get_transport()
        if transport is None:
            raise paramiko.SSHException("no transport")
    except (paramiko.SSHException, OSError, EOFError) as error:
        connection.close()
        raise _refusal(error, endpoint, instance_id) from error
    transport.set_keepalive(KEEPALIVE_SECONDS)
    return connection, transport.get_remote_server_key()


def _connection(endpoint: Endpoint, key: KeyPair) -> Connection:
    # paramiko reports broken banners as tracebacks through logging's last resort, straight onto the screen.
    logger = logging.getLogger("paramiko")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    overrides = {"load_ssh_configs": False, "runners": {"remote": CappedRemote}}
    return OneLink(
        endpoint.host,
        user=endpoint.user,
        port=endpoint.port,
        config=Config(overrides=overrides, lazy=True),
        connect_timeout=CONNECT_SECONDS,  # type: ignore[arg-type]  # seconds, whatever the stub says
        connect_kwargs={
            "pkey": paramiko.Ed25519Key.from_private_key_file(str(key.private_path)),
            "allow_agent": False,
            "look_for_keys": False,
            "banner_timeout": CONNECT_SECONDS,
            "auth_timeout": CONNECT_SECONDS,
            # Its default is an hour: a frozen link would block every command that long.
            "channel_timeout": CONNECT_SECONDS,
        },
    )


def _refusal(error: Exception, endpoint: Endpoint, instance_id: int) -> BrunoError:
    """The room's error for what paramiko raised while connecting."""
    where = f"{endpoint.host}:{endpoint.port} ({endpoint.kind})"
    if isinstance(error, paramiko.BadHostKeyException):
        pinned, shown = fingerprint_of(error.expected_key.asbytes()), fingerprint_of(error.key.asbytes())
        return HostKeyChanged(
            f"the machine at {where} is not the one known as instance {instance_id}: its host key is {shown}, pinned is {pinned}",
            pinned=pinned,
            shown=shown,
            fix="Nothing was sent; the address may belong to somebody else now. Drop the pin only if the instance was recycled",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return HostRefused(
            f"{where} does not accept bruno's SSH key", fix="Attach the key to this instance, then wait half a minute"
        )
    if isinstance(error, NoValidConnectionsError | ConnectionRefusedError):
        return HostRefused(f"{where} refuses the connection")
    if isinstance(error, socket.gaierror):
        return HostRefused(f"{where} cannot be found: no such address")
    if "banner" in str(error) or isinstance(error, EOFError | ConnectionError):
        return HostRefused(f"{where} accepts the connection but speaks no SSH yet")
    return HostRefused(f"{where} does not answer")
