"""Where a model folder keeps the writers' weights: safetensors files, names, data types. Reads headers, never whole files.

Asked when a model is loaded, so that a search never ends in a model that cannot be written; and again by `export`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bruno.engine.model.architectures import Writer
from bruno.errors import InputError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: `begin` and `end` are byte offsets in that file."""

    key: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredWriter:
    """A writer's parameters on disk: `index` is its place in `find_writers`' list."""

    index: int
    weight: StoredTensor
    bias: StoredTensor | None


def stored_writers(source: Path, writers: Sequence[Writer]) -> list[StoredWriter]:
    """Find each writer's parameters in a model folder.

    Raises:
        InputError: no safetensors, a file that the index names is missing or broken, a writer is absent, ambiguous, of
            another shape, or in a data type that cannot be edited (an already quantised checkpoint).
    """
    headers = {file: read_header(source / file) for file in weight_files(source)}
    where = {key: file for file, header in headers.items() for key in header}
    found = []
    for index, writer in enumerate(writers):
        key = _key(f"{writer.name}.weight", where, source)
        weight = _stored(key, where[key], headers[where[key]][key])
        expected = tuple(writer.weight_shape if not writer.transposed else reversed(writer.weight_shape))
        if weight.shape != expected:
            raise InputError(f"{key} in {source} has shape {list(weight.shape)}, the model has {list(expected)}")
        bias = None
        if getattr(writer.module, "bias", None) is not None:
            bias_key = key.removesuffix("weight") + "bias"
            if bias_key not in where:
                raise InputError(f"{source} holds no {bias_key}, which the model has")
            bias = _stored(bias_key, where[bias_key], headers[where[bias_key]][bias_key])
        found.append(StoredWriter(index, weight, bias))
    return found


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


def _key(name: str, where: dict[str, str], source: Path) -> str:
    """The stored name of a parameter: its own, or without the outermost module (saved from the bare decoder)."""
    shorter = name.split(".", 1)[1]
    for candidate in (name, shorter):
        if candidate in where:
            return candidate
    raise InputError(f"{source} holds neither {name} nor {shorter}", fix="This checkpoint's names are not known")


def _stored(key: str, file: str, entry: dict) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise InputError(
            f"{key} is stored as {entry['dtype']}, which cannot be edited exactly",
            fix="Use the model's unquantised checkpoint (loading.quantization quantises it for the search)",
        )
    begin, end = entry["data_offsets"]
    return StoredTensor(key, file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin, end)
