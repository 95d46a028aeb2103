"""The engine as a wheel, packed from the installed package's own files, for the rented machine (skeleton)."""

from __future__ import annotations

from pathlib import Path


def build(folder: Path) -> Path:
    """Write `bruno_engine-<version>-py3-none-any.whl` into `folder` and return its path. The same source gives the same bytes."""
    raise NotImplementedError
