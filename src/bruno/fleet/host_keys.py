"""Host keys pinned per instance id: the provider gives the same address to the next tenant (skeleton)."""

from __future__ import annotations

from pathlib import Path


class HostKeys:
    """One file per instance id below `folder` (`paths().known_hosts`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fingerprint(self, instance_id: int) -> str | None:
        """The pinned key's `SHA256:...`, or None when none is pinned yet."""
        raise NotImplementedError

    def forget(self, instance_id: int) -> None:
        """Drop the pin of a destroyed instance."""
        raise NotImplementedError
