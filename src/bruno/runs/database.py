"""The database where the workers of one run keep their study: its address without its password, and whether it answers.

The whole URL is `search.storage` of the settings in force, on this computer alone. Plans, records, logs and command lines hold
the address; the password travels in a file of mode 0600. Touches the network only in `answers`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from bruno.errors import Denied, InputError
from bruno.settings.secrets import hide_url

SCHEME = "postgresql"
PORT = 5432
VARIABLE = "BRUNO_SEARCH__STORAGE"
"""Environment variable by which the engine's process on a machine is told the whole URL."""
SECONDS = 5.0
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's own opening question ("do you speak TLS?"), answered S, N or E before anybody logs in (protocol 3.0)."""
_HOW = "search.storage = postgresql://USER:PASSWORD@HOST:5432/NAME (BRUNO_SEARCH__STORAGE keeps the password out of config.toml)"


@dataclass(frozen=True)
class Database:
    """Where a shared study is kept."""

    url: str = field(repr=False)
    """With the password: never shown, recorded or put on a command line."""
    address: str
    """Without it: `postgresql://user@host:port/name`."""
    host: str
    port: int

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"


def shared(storage: str, *, local: bool = False) -> Database:
    """The database that several instances can share.

    Args:
        storage: `search.storage`.
        local: the instances run on this very computer (the sandbox's do), so a loopback address reaches it.

    Raises:
        InputError: no storage, no PostgreSQL URL, or an address that only this computer reaches. Never quotes the URL.
    """
    needed = "workers on several instances keep one study in a PostgreSQL database that all of them reach"
    if not storage.strip():
        raise InputError(f"{needed}, and none is set", fix=f"Set {_HOW}")
    parts = _parts(storage)
    if parts is None or parts.scheme.partition("+")[0] != SCHEME:
        raise InputError(f"{needed}, and search.storage names no such database", fix=f"Set {_HOW}")
    found = address_of(storage)
    if not found.host or not parts.path.strip("/"):
        raise InputError(f"search.storage ({found.address}) names no host or no database", fix=f"Set {_HOW}")
    if _only_here(found.host) and not local:
        raise InputError(
            f"search.storage is on {found.host}, which every instance takes for itself",
            fix="Name a host that rented machines reach from the internet",
        )
    return found


def address_of(storage: str) -> Database:
    """The URL with its secrets taken out, which are redacted everywhere from now on. A path or "" is its own address."""
    parts = _parts(storage)
    if parts is None or not parts.netloc:
        return Database(storage, storage if "@" not in storage else "a URL that cannot be read", "", 0)
    hide_url(storage.strip())
    host, port = parts.hostname or "", parts.port or PORT
    user = f"{parts.username}@" if parts.username else ""
    shown = f"[{host}]" if ":" in host else host
    return Database(storage, f"{parts.scheme}://{user}{shown}:{port}{parts.path}", host, port)


def answers(database: Database, *, seconds: float = SECONDS) -> None:
    """Return when a PostgreSQL server answers there. Sends no name and no password.

    Raises:
        Denied: nothing answers, or something else does.
    """
    try:
        with socket.create_connection((database.host, database.port), timeout=seconds) as link:
            link.settimeout(seconds)
            link.sendall(_SSL_REQUEST)
            said = link.recv(1)
    except (OSError, UnicodeError) as error:
        why = str(error) or type(error).__name__
        raise Denied(
            f"nothing answers at {database.place}, where search.storage is ({why}): the workers could not reach it",
            fix="Start the database, or open its port",
        ) from error
    if said not in (b"S", b"N", b"E"):
        raise Denied(f"what answers at {database.place} is no PostgreSQL server", fix=f"Set {_HOW}")


def same_place(database: Database, confirmed: str) -> None:
    """Raise Denied unless this is the database that was confirmed with the plan: it may have been set to another since."""
    if database.address != confirmed:
        now = database.address or "not set"
        raise Denied(
            f"this run keeps its study in {confirmed}, and search.storage is now {now}", fix="Set it back to go on"
        )


def _parts(storage: str) -> SplitResult | None:
    """The URL's parts; None for what is none (a path), or cannot be read as one."""
    if not re.match(r"[a-z][a-z0-9+]*://", storage.strip()):
        return None
    try:
        parts = urlsplit(storage.strip())
        _ = parts.port, parts.hostname  # raise here when they make no sense
    except ValueError:
        return None
    return parts


def _only_here(host: str) -> bool:
    if host.casefold() in ("localhost", "localhost.localdomain"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
