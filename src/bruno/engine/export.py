"""Write the reshaped model: every file of the source byte for byte, only the shards that hold edited tensors rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bruno.engine.edits import EditBatch
    from bruno.engine.loading import Emit, LoadedModel


def export(
    loaded: LoadedModel,
    batch: EditBatch,
    folder: Path,
    *,
    emit: Emit,
    trial: int = 0,
    card: Mapping[str, str] | None = None,
    check_room: bool = True,
) -> Path:
    """Write the model with one trial's edit baked in to `folder`, which must not exist yet, and return it.

    Written beside it under a temporary name, verified, then renamed: a crash leaves no half model.

    Args:
        card: lines for the model card: what was done, settings, scores.
        check_room: refuse before the first byte when the disk lacks room.

    Raises:
        InputError: the folder exists.
        ExportFailed: no room, disk full while writing (nothing half-written is left), source files changed or missing.
    """
    raise NotImplementedError
