"""Host keys pinned per instance id. Reads and writes one small file per instance in the folder it is given.

Pinned by id, not by address: the provider gives an ip:port to the next tenant, and a command meant for one's own machine would
land on somebody else's.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bruno.errors import InputError
from bruno.fleet.keys import fingerprint_of

if TYPE_CHECKING:
    import paramiko


class HostKeys:
    """One file per instance id below `folder` (`paths().known_hosts`), holding `TYPE BASE64`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, instance_id: int) -> paramiko.PKey | None:
        """The pinned key, or None when none is pinned yet.

        Raises:
            InputError: the file is there but broken. Never read as "none yet", which would trust any machine.
        """
        import paramiko
        from paramiko.pkey import UnknownKeyType

        path = self._path(instance_id)
        try:
            text = path.read_text(encoding="ascii")
            kind, encoded = text.split()[:2]
            return paramiko.PKey.from_type_string(kind, base64.b64decode(encoded, validate=True))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, binascii.Error, paramiko.SSHException, UnknownKeyType) as error:
            fix = "Delete it only if you are sure which machine answers: the next key seen is then pinned"
            raise InputError(f"the pinned host key {path} cannot be read", fix=fix) from error

    def pin(self, instance_id: int, key: paramiko.PKey) -> None:
        """Pin a key on first contact.

        Raises:
            FileExistsError: another console pinned one in the meantime.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(instance_id)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(key):x}")
        temporary.write_text(f"{key.get_name()} {key.get_base64()}\n", encoding="ascii")
        try:
            os.link(temporary, path)  # appears whole, and never over a key that is there
        finally:
            temporary.unlink()

    def fingerprint(self, instance_id: int) -> str | None:
        """The pinned key's `SHA256:...`, or None when none is pinned yet. Raises InputError for a broken file."""
        key = self.get(instance_id)
        return None if key is None else fingerprint_of(key.asbytes())

    def forget(self, instance_id: int) -> None:
        """Drop the pin of a destroyed instance."""
        self._path(instance_id).unlink(missing_ok=True)

    def _path(self, instance_id: int) -> Path:
        return self.folder / str(int(instance_id))
