"""bruno's own SSH key pair: ed25519, one per installation, never the person's own keys or agent (skeleton)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KeyPair:
    private_path: Path
    public_key: str
    """One line: `ssh-ed25519 AAAA... bruno`."""
    fingerprint: str
    """`SHA256:...` as `ssh-keygen -lf` prints it."""


def key_pair(folder: Path) -> KeyPair:
    """The key pair in `folder` (`paths().keys`), made on first use with mode 0600. Raises InputError for a broken or open file."""
    raise NotImplementedError
