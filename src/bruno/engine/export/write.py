"""Write the reshaped model: every file of the source byte for byte, and the edited tensors' bytes replaced.

An edit is computed anew from each stored weight in fp32, one tensor in memory at a time: a search on a quantised model
exports the edit of the original weights. An edited tensor keeps its shape and data type, so a shard is copied whole and
only the bytes of edited tensors are written over. All happens in a hidden folder beside the target, which is verified and
renamed at the end: a crash, a full disk or Ctrl-C leaves no half model. Touches nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from humanize import naturalsize

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.bake import bake_bias, bake_router, bake_weight
from bruno.engine.edits.build import EditRules, TrialEdit, edit_router, edit_weight, is_edited
from bruno.engine.events import Emit, Notice
from bruno.engine.export.card import Card, write_card
from bruno.engine.export.custom_code import localise_code
from bruno.engine.model.architectures import Writer
from bruno.engine.model.checkpoint import (
    StoredTensor,
    StoredWriter,
    read_header,
    stored_routers,
    stored_writers,
    weight_files,
)
from bruno.engine.model.loading import LoadedModel
from bruno.errors import BrunoError, InputError

_SPARE = 64 * 2**20  # bytes that must stay free beside the model
_NOT_THE_MODEL = {".git", ".cache", "__pycache__"}
_BASE_CARD = "README.base-model.md"


class ExportFailed(BrunoError):
    """The model could not be written. Nothing half-written is left, and the study is untouched."""


def export(
    loaded: LoadedModel,
    trial: TrialEdit,
    directions: DirectionSet,
    rules: EditRules,
    folder: Path,
    *,
    emit: Emit,
    card: Card | None = None,
    check_room: bool = True,
) -> Path:
    """Write the model with one trial's edit baked in to `folder`, which must not exist yet, and return it.

    The caller reports `ModelSaved`.

    Args:
        trial, directions, rules: the edit, as `build_edits` was given it for the search.
        card: what the model card says; none is written without it.
        check_room: refuse before the first byte when the disk lacks room.

    Raises:
        InputError: the folder exists, or the source files are not the model's any more.
        ExportFailed: no room, or writing failed (a full disk).
    """
    folder = folder.absolute()
    if folder.exists():
        raise InputError(f"{folder} exists already", fix="Choose another export.name, or move it away")
    edit = _Edit(loaded, trial, directions, rules)
    stored = edit.stored_writers()
    routers = edit.stored_routers()
    files = _source_files(loaded.source)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            emit(Notice(text=f"Removing {partial}, left by an export that was cut off", level="warning"))
            shutil.rmtree(partial)
        if check_room:
            _check_room(loaded.source, files, folder.parent)
        partial.mkdir()
        _copy(loaded.source, files, partial)
        for writer in stored:
            edit.rewrite(writer, partial)
        for layer, router in routers.items():
            edit.rewrite_router(layer, router, partial)
        if card is not None:
            write_card(partial, card, name=folder.name)
        localise_code(loaded.source, partial, emit)
        _verify(loaded.source, partial)
        _sync(partial)
        partial.rename(folder)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ExportFailed(
            f"The model could not be written to {folder}: {reason}",
            fix="Nothing was left behind; make room and export again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _source_files(source: Path) -> list[Path]:
    """Every file of the model, relative to its folder."""
    relative = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
    return [path for path in relative if not _NOT_THE_MODEL & set(path.parts)]


def _check_room(source: Path, files: list[Path], parent: Path) -> None:
    needed = sum((source / file).stat().st_size for file in files) + _SPARE
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportFailed(
            f"Saving the model needs {naturalsize(needed, binary=True)} in {parent}, {naturalsize(free, binary=True)} are free",
            fix="Make room, or set out to a folder on a larger disk",
        )


def _copy(source: Path, files: list[Path], target: Path) -> None:
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)  # follows the hub cache's links


@dataclass(frozen=True)
class _Edit:
    """One trial's edit of a model's stored weights."""

    loaded: LoadedModel
    trial: TrialEdit
    directions: DirectionSet
    rules: EditRules

    def stored_writers(self) -> list[StoredWriter]:
        """The tensors that it changes."""
        return [
            stored
            for stored in stored_writers(self.loaded.source, self.loaded.writers)
            if is_edited(self.trial, self.directions, self.rules, self.loaded.writers[stored.index], stored.expert)
        ]

    def stored_routers(self) -> dict[int, StoredTensor]:
        """The routers that it changes, by block."""
        if not self.rules.router:
            return {}
        mixtures = self._routed()
        return {
            layer: stored
            for layer, stored in stored_routers(self.loaded.source, self.loaded.writers).items()
            if is_edited(self.trial, self.directions, replace(self.rules, experts=None), mixtures[layer])
        }

    def rewrite(self, stored: StoredWriter, target: Path) -> None:
        """Replace the bytes of one weight, and of its bias where it has one."""
        writer, device = self.loaded.writers[stored.index], self.loaded.device
        weight = _read(self.loaded.source, stored.weight).to(device)
        whole = (weight.T if writer.transposed else weight).float()
        edit = edit_weight(whole, [self.trial], self.directions, self.rules, writer)
        _replace(target, stored.weight, bake_weight(weight, edit, transposed=writer.transposed))
        if stored.bias is not None:
            bias = _read(self.loaded.source, stored.bias).to(device)
            _replace(target, stored.bias, bake_bias(bias, edit))

    def rewrite_router(self, layer: int, stored: StoredTensor, target: Path) -> None:
        """Replace the bytes of one router's weight."""
        device = self.loaded.device
        edit = edit_router([self.trial], self.directions, self.rules, self._routed()[layer], device)
        _replace(target, stored, bake_router(_read(self.loaded.source, stored).to(device), edit))

    def _routed(self) -> dict[int, Writer]:
        """A routed expert of each block that has them."""
        return {writer.layer: writer for writer in self.loaded.writers if writer.mixture is not None}


def _read(folder: Path, stored: StoredTensor) -> torch.Tensor:
    with (folder / stored.file).open("rb") as stream:
        stream.seek(stored.begin)
        data = bytearray(stream.read(stored.end - stored.begin))
    return torch.frombuffer(data, dtype=stored.dtype).reshape(stored.shape)


def _replace(folder: Path, stored: StoredTensor, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ExportFailed(f"The edit makes {stored.key} overflow {stored.dtype}", fix="Choose another trial")
    data = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    if len(data) != stored.end - stored.begin:
        raise ExportFailed(f"The edited {stored.key} has {len(data)} bytes, not {stored.end - stored.begin}")
    with (folder / stored.file).open("r+b") as stream:
        stream.seek(stored.begin)
        stream.write(data)


def _verify(source: Path, target: Path) -> None:
    """The copy's index and headers are whole and name what the source's do; its configuration parses."""
    if weight_files(target) != weight_files(source):
        raise ExportFailed(f"The copy of {source} has other weight files")
    for file in weight_files(source):
        if read_header(target / file) != read_header(source / file):
            raise ExportFailed(f"The copy of {source / file} has another header")
    json.loads((target / "config.json").read_text())


def _sync(folder: Path) -> None:
    """Have the system write everything down before the folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
