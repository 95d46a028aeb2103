"""Copying folders to and from a machine: resumable, hashes compared, finished folders appear whole (skeleton)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from bruno.fleet.host import Host


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


def fetch(
    host: Host,
    remote_folder: str,
    local_folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
) -> FetchReport:
    """Copy a folder home. It appears under `local_folder` only when every file's hash agrees; until then it grows in
    `local_folder.with_name(name + ".part")` and a second call goes on from there. Already home with the same hashes: done.

    Raises: TransferFailed, DiskFull, Cancelled, HostLost; InputError when `local_folder` exists with other content.
    """
    raise NotImplementedError


def send(
    host: Host,
    local: Path,
    remote: str,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
) -> FetchReport:
    """Copy one file to the machine under exactly this name, resumable, hash checked, renamed into place when whole."""
    raise NotImplementedError
