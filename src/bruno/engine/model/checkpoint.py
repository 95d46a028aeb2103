"""Where a model folder keeps the writers' weights: safetensors files, names, data types. Reads headers, never whole files.

A live model's parameter may lie in a folder under another name (towers moved the decoder), or in parts (one tensor for
each expert, which transformers 5 fuses when it loads). Everything here comes down to two-dimensional tensors with byte
ranges: one expert of a fused tensor is a range of that tensor.

Asked when a model is loaded, so that a search never ends in a model that cannot be written; and again by `export`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bruno.engine.model.architectures import Writer, find_mixtures
from bruno.errors import InputError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_UNQUANTISED = {  # published whole under another name; elsewhere the unquantised model has the plain name
    "gpt_oss": "unsloth/gpt-oss-20b-BF16 or unsloth/gpt-oss-120b-BF16",
    "deepseek_v3": "unsloth/DeepSeek-V3-bf16",
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file, or one expert's part of it: `begin` and `end` are byte offsets in that file."""

    key: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def part(self, number: int) -> StoredTensor:
        """Entry `number` of the first axis."""
        size = (self.end - self.begin) // self.shape[0]
        begin = self.begin + number * size
        return StoredTensor(self.key, self.file, self.dtype, self.shape[1:], begin, begin + size)


@dataclass(frozen=True)
class StoredWriter:
    """A writer's parameters on disk.

    Attributes:
        index: its place in `find_writers`' list.
        weight: W, [d, d_in], or [d_in, d] when the writer is transposed.
        bias: b, [d].
        expert: which routed expert, where the live writer holds many; None elsewhere.
    """

    index: int
    weight: StoredTensor
    bias: StoredTensor | None
    expert: int | None = None


@dataclass(frozen=True)
class _Folder:
    """The headers of a model's weight files."""

    source: Path
    headers: Mapping[str, dict[str, dict]]
    where: Mapping[str, str]

    @classmethod
    def read(cls, source: Path) -> _Folder:
        headers = {file: read_header(source / file) for file in weight_files(source)}
        return cls(source, headers, {key: file for file, header in headers.items() for key in header})

    def find(self, name: str) -> StoredTensor | None:
        """A parameter of the live model, under its own name or one of those it may be stored by."""
        for key in stored_names(name):
            if key in self.where:
                return self._stored(key)
        return None

    def need(self, name: str) -> StoredTensor:
        found = self.find(name)
        if found is None:
            names = stored_names(name)
            raise InputError(
                f"{self.source} holds neither {' nor '.join(names[:4])}", fix="This checkpoint's names are not known"
            )
        return found

    def _stored(self, key: str) -> StoredTensor:
        file = self.where[key]
        entry = self.headers[file][key]
        if entry["dtype"] not in _DTYPES:
            raise InputError(f"{key} is stored as {entry['dtype']}, which cannot be edited exactly", fix=self.instead())
        begin, end = entry["data_offsets"]
        return StoredTensor(key, file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin, end)

    def instead(self) -> str:
        """Which checkpoint to use instead of a quantised one."""
        try:
            config = json.loads((self.source / "config.json").read_text())
            kind = str(config.get("model_type", ""))
        except (OSError, ValueError, AttributeError):
            kind = ""
        name = f", such as {_UNQUANTISED[kind]}" if kind in _UNQUANTISED else ", which usually lacks the -FP8 or -4bit"
        return f"Use the model's unquantised checkpoint{name} (loading.quantization quantises it for the search)"

    def refuse_packed(self, name: str) -> None:
        """Four-bit checkpoints keep `blocks` and `scales` (MXFP4) instead of the weight."""
        packed = [
            f"{key}{end}" for key in stored_names(name) for end in ("_blocks", "_packed") if f"{key}{end}" in self.where
        ]
        if packed:
            raise InputError(
                f"{packed[0]} in {self.source} is quantised to four bits, which cannot be edited exactly",
                fix=self.instead(),
            )


def stored_writers(source: Path, writers: Sequence[Writer]) -> list[StoredWriter]:
    """Find each writer's parameters in a model folder; fused experts one by one.

    Raises:
        InputError: no safetensors, a file that the index names is missing or broken, a writer is absent, of another
            shape, or in a data type that cannot be edited (an already quantised checkpoint).
    """
    folder = _Folder.read(source)
    found: list[StoredWriter] = []
    for index, writer in enumerate(writers):
        if writer.experts:
            found += _stored_experts(folder, index, writer)
            continue
        weight = folder.need(writer.weight_name)
        _expect(folder, weight, _stored_shape(writer))
        bias = None
        if writer.bias_name is not None:
            bias = folder.find(writer.bias_name)
            if bias is None:
                raise InputError(f"{source} holds no {writer.bias_name}, which the model has")
        found.append(StoredWriter(index, weight, bias, writer.expert))
    return found


def stored_routers(source: Path, writers: Sequence[Writer]) -> dict[int, StoredTensor]:
    """The weight [E, d] of each mixture's router, by block.

    Raises:
        InputError: as `stored_writers`.
    """
    folder = _Folder.read(source)
    found = {}
    for mixture in find_mixtures(writers):
        found[mixture.layer] = folder.need(f"{mixture.router_name}.weight")
        hidden = next(w.weight_shape[0] for w in writers if w.mixture is mixture)
        _expect(folder, found[mixture.layer], (mixture.experts, hidden))
    return found


def _stored_experts(folder: _Folder, index: int, writer: Writer) -> list[StoredWriter]:
    """Each of the experts of a fused writer: a part of a fused tensor, or a tensor of its own."""
    folder.refuse_packed(writer.weight_name)
    fused = folder.find(writer.weight_name)
    bias = folder.find(writer.bias_name) if writer.bias_name else None
    if writer.bias_name and bias is None:
        raise InputError(f"{folder.source} holds no {writer.bias_name}, which the model has")
    found = []
    for number in range(writer.experts):
        if fused is not None:
            _expect(folder, fused, (writer.experts, *_stored_shape(writer)))
            weight = fused.part(number)
        else:
            weight = folder.need(f"{writer.name}.{number}.down_proj.weight")
            _expect(folder, weight, _stored_shape(writer))
        found.append(StoredWriter(index, weight, None if bias is None else bias.part(number), number))
    return found


def _stored_shape(writer: Writer) -> tuple[int, ...]:
    return tuple(reversed(writer.weight_shape)) if writer.transposed else writer.weight_shape


def _expect(folder: _Folder, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise InputError(f"{stored.key} in {folder.source} has shape {list(stored.shape)}, the model has {list(shape)}")
    if stored.end - stored.begin != math.prod(shape) * stored.dtype.itemsize:
        raise InputError(f"{stored.key} in {folder.source} has a broken header", fix="Download the model again")


def stored_names(name: str) -> list[str]:
    """Names that a live model's parameter may have on disk, its own first.

    A checkpoint saved from the bare decoder lacks the outermost module. Decoders with towers have moved
    (`language_model.model.` before, `model.language_model.` now; Qwen2-VL had plain `model.`), and a text model may be
    read from a checkpoint with towers. Mixtral's hub names are `block_sparse_moe.experts.N.w2`.
    """
    inner = name.removeprefix("model.language_model.")
    if inner != name:
        names = [name, f"language_model.model.{inner}", f"model.{inner}", f"language_model.{inner}"]
    else:
        inner = name.removeprefix("model.")
        names = [name, name.split(".", 1)[1]]
        if inner != name:
            names += [f"model.language_model.{inner}", f"language_model.model.{inner}"]
    mixtral = [
        each.replace(".mlp.", ".block_sparse_moe.").replace(".down_proj.weight", ".w2.weight")
        for each in names
        if ".mlp.experts." in each or ".mlp.gate." in each
    ]
    return [*names, *mixtral]


def weight_files(source: Path) -> list[str]:
    """Names of the safetensors files that make up the model, by its index where it has one.

    Raises:
        InputError: there are none, or one that the index names is missing.
    """
    index = source / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{index} is not an index of safetensors files", fix="Download the model again") from error
        missing = [file for file in files if Path(file).name != file or not (source / file).is_file()]
        if missing:
            raise InputError(
                f"{source} lacks {', '.join(missing)}, which its index names", fix="Download the model again"
            )
        return files
    if (source / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise InputError(
        f"{source} holds no model.safetensors and no index of such files",
        fix="Convert the weights with transformers: save_pretrained writes safetensors",
    )


def read_header(file: Path) -> dict[str, dict]:
    """Tensor name to dtype, shape and offsets from the file's beginning.

    Format: eight bytes of length, little-endian; that many bytes of JSON; the data
    (https://huggingface.co/docs/safetensors).

    Raises:
        InputError: the file is not safetensors, or shorter than its header says.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _LARGEST_HEADER):
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        base = 8 + length
        for entry in header.values():
            entry["data_offsets"] = [base + offset for offset in entry["data_offsets"]]
        end = max((entry["data_offsets"][1] for entry in header.values()), default=base)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is not a safetensors file", fix="Download the model again") from error
    if end > size:
        raise InputError(f"{file} is cut short: {size} bytes of {end}", fix="Download the model again")
    return header
