"""A model's weights counted from the headers of its files: parameters and bytes by data type, and what each precision makes
of them. Pure.

Parameters are the values that the model computes with: two for each byte of MXFP4, none for scales. A packing that is not
known here leaves the count unknown.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bruno.runs.constants import Constants
from bruno.runs.stored import StoredModel, Tensor

Precision = Literal["bf16", "int8", "nf4", "fp32"]

_FLOATS = {"BF16": "bf16", "F16": "bf16", "F32": "fp32", "F64": "fp32"}
_EIGHT_BIT = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALES = re.compile(r"(?:_scales?|scale_inv|\.scales|\.qzeros|\.g_idx|\.absmax|\.quant_map|\.SCB)$")
_MXFP4 = re.compile(r"_blocks$")
_EXPERTS = re.compile(r"\.experts\.")
_TOWER = re.compile(
    r"(?:^|\.)(?:visual|vision_tower|vision_model|vision_embed\w*|audio_tower|audio_model|multi_modal_projector|"
    r"mm_projector|connector|aligner|patch_merger)\."
)
_NO_LINEAR = re.compile(
    r"(?:embed\w*|wte|wpe|lm_head|output_layer|embed_out|\.gate|\.router|\.shared_expert_gate|conv1d)\.weight$"
)
"""Two-dimensional weights that bitsandbytes leaves alone, or that belong to no plain Linear."""
_UNPACKED = frozenset({"mxfp4", "fp8"})
_WHOLE = {
    "gpt_oss": "unsloth/gpt-oss-20b-BF16 or unsloth/gpt-oss-120b-BF16",
    "deepseek_v3": "unsloth/DeepSeek-V3-bf16",
}


class Stored(BaseModel):
    """Weights of one data type."""

    model_config = ConfigDict(frozen=True)
    dtype: str
    parameters: int
    bytes: int


class Weights(BaseModel):
    """A model's weights as its files hold them. `parameters` None: packed in a way that is not known here."""

    model_config = ConfigDict(frozen=True)
    stored: tuple[Stored, ...] = ()
    """By data type, largest first; empty when only a total is known."""
    bytes: int
    """Of all tensors, as stored."""
    parameters: int | None = None
    packable: int = 0
    """Parameters that bitsandbytes would quantise: plain matrices, but neither heads, embeddings nor experts that the library
    fuses into one parameter."""
    experts: int = 0
    """Parameters of routed experts, all of them."""
    tower_bytes: int = 0
    """Bytes, as stored, of towers for images and sound and their projectors."""
    refused: str = ""
    """Why the engine cannot edit these files; "" when nothing speaks against it."""
    source: str
    """Who says so: the headers of the files, or the settings' weights_gb."""

    @property
    def natural(self) -> Precision:
        """What the engine loads where loading.dtype is "auto": the data type of most weights; packed ones become bf16."""
        sizes: Counter[str] = Counter()
        for each in self.stored:
            if each.dtype in _FLOATS:
                sizes[_FLOATS[each.dtype]] += each.parameters
        whole = sizes.most_common(1)
        return "fp32" if whole and whole[0][0] == "fp32" and not self._packed else "bf16"

    @property
    def _packed(self) -> bool:
        return any(each.dtype not in _FLOATS for each in self.stored)

    def loaded(self, precision: Precision, figures: Constants) -> float | None:
        """Bytes once loaded; None when unknown."""
        if self.parameters is None:
            return float(self.bytes) if precision == "bf16" and not self.stored else None
        if precision in ("bf16", "fp32"):
            return self.parameters * (2.0 if precision == "bf16" else 4.0)
        each = figures.int8_bytes.value if precision == "int8" else figures.nf4_bytes.value
        return self.packable * each + (self.parameters - self.packable) * 2.0


def weights_of(model: StoredModel) -> Weights | None:
    """Count a model's tensors. None when its files say nothing."""
    if model.tensors is None:
        return None
    config = model.config or {}
    method = _method(config)
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    known = not method or method in _UNPACKED
    packable = experts = tower = 0
    for tensor in model.tensors:
        count = _values(tensor)
        sizes[tensor.dtype] += tensor.bytes
        if count is None:
            known = False
            continue
        parameters[tensor.dtype] += count
        experts += count if _EXPERTS.search(tensor.name) else 0
        tower += tensor.bytes if _TOWER.search(tensor.name) else 0
        packable += count if _is_packable(tensor) else 0
    return Weights(
        stored=tuple(
            Stored(dtype=dtype, parameters=parameters[dtype], bytes=size)
            for dtype, size in sorted(sizes.items(), key=lambda item: -item[1])
        ),
        bytes=sum(sizes.values()),
        parameters=sum(parameters.values()) if known else None,
        packable=packable,
        experts=experts,
        tower_bytes=tower,
        refused=_refused(method, model.tensors, str(config.get("model_type", ""))),
        source="the headers of its safetensors files",
    )


def told(weights_gb: float) -> Weights:
    """Weights of which only the size in the settings is known; taken to be bf16, as the settings say."""
    return Weights(bytes=round(weights_gb * 1e9), source=f"weights_gb = {weights_gb:g} in the settings")


def _values(tensor: Tensor) -> int | None:
    """Parameters in a tensor: 0 for scales and buffers, None for a packing that is not known."""
    count = math.prod(tensor.shape)
    if _SCALES.search(tensor.name):
        return 0
    if tensor.dtype in _FLOATS or tensor.dtype in _EIGHT_BIT:
        return count
    if tensor.dtype == "U8" and _MXFP4.search(tensor.name):
        return 2 * count
    if tensor.dtype in ("I64", "BOOL"):
        return 0  # buffers such as position_ids
    return None


def _is_packable(tensor: Tensor) -> bool:
    return (
        len(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and not _EXPERTS.search(tensor.name)
        and not _NO_LINEAR.search(tensor.name)
    )


def _method(config: dict[str, Any]) -> str:
    stored = config.get("quantization_config")
    return str(stored.get("quant_method", "unknown")) if isinstance(stored, dict) else ""


def _refused(method: str, tensors: Iterable[Tensor], family: str) -> str:
    """The engine edits weights as numbers: packed writers are refused when the model is loaded. Known before that, here."""
    packed = sorted({tensor.dtype for tensor in tensors if tensor.dtype not in _FLOATS and _values(tensor) != 0})
    if not method and not packed:
        return ""
    instead = _WHOLE.get(family, "the original, unquantised model")
    return (
        f"it is stored quantised ({method or ', '.join(packed)}), and packed weights cannot be edited: name {instead}"
    )
