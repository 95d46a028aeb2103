"""bruno's own SSH key pair: ed25519, one per installation. The person's own keys and agent are never touched.

Writes only in the folder it is given (`paths().keys`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bruno.errors import InputError

_NAME = "bruno_ed25519"


@dataclass(frozen=True)
class KeyPair:
    """Where the private key lies, and what may be shown of it."""

    private_path: Path
    public_key: str
    """One line: `ssh-ed25519 AAAA... bruno`."""
    fingerprint: str
    """`SHA256:...`, as `ssh-keygen -lf` prints it."""


def key_pair(folder: Path) -> KeyPair:
    """The key pair in `folder` (`paths().keys`), made on first use with mode 0600.

    Raises:
        InputError: the private key is broken, or others can read it (an SSH server would be right to distrust it).
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = folder / _NAME
    if not path.exists():
        _make(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"the private key {path} can be read by other users", fix=f"chmod 600 {path}")
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        fix = "Move it away: bruno makes a new one, which has to be attached to running instances"
        raise InputError(f"the private key {path} cannot be read", fix=fix) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"the private key {path} is not an ed25519 key", fix="Move it away: bruno makes a new one")
    encoded = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public = f"{encoded.decode()} bruno"
    return KeyPair(path, public, fingerprint(public))


def fingerprint(public_key: str) -> str:
    """`SHA256:...` of a public key line, as OpenSSH prints it. Raises InputError when it is none."""
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise InputError(
            "this is not a public SSH key line", fix="Give the text of the .pub file, not its path"
        ) from error
    return fingerprint_of(blob)


def fingerprint_of(blob: bytes) -> str:
    """`SHA256:...` of a key's wire format."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def same_key(one: str, other: str) -> bool:
    """Whether two public key lines are the same key; comments do not count."""
    return one.split()[:2] == other.split()[:2]


def _make(path: Path) -> None:
    """Write a new pair. The private key appears under its name whole or not at all, and never over another process's."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    text = Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption())
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    try:
        os.link(temporary, path)  # unlike a rename this fails when a second console was quicker
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
