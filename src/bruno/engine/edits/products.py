"""What an edit reads of a weight: its product with directions, and its norms. No copy of a whole weight is made.

A weight is [d, d_in], or [E, d, d_in] for fused experts, of whatever type it is kept in; results are fp32 (fp64 from fp64).
Norms do not depend on the trial, so those of a live weight are kept until it changes.
"""

from __future__ import annotations

from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import nn

from bruno.engine.model.architectures import Writer

# Half-precision weights are widened so many values at a time where nothing multiplies them as they are.
_CHUNK = 2**24
# Per module, by the axis summed over: the state of the parameter that the norms are of, and the norms.
_norms: WeakKeyDictionary[nn.Module, dict[int, tuple[tuple[int, int], torch.Tensor]]] = WeakKeyDictionary()


def product(rows: torch.Tensor, weight: torch.Tensor, parts: torch.Tensor | None = None) -> torch.Tensor:
    """rows @ weight to fp32 accuracy, reading the weight once.

    Args:
        rows: [m, d], or [E, m, d] for weights [E, d, n].
        weight: [d, n] or [E, d, n].
        parts: `split(rows)`, where it is known already; of rows [m, d].

    bf16 weights on a GPU are multiplied as they are: fp32 rows are the sum of three bf16 ones, whose products with bf16 are
    exact in fp32.
    """
    if weight.dtype in (rows.dtype, torch.float64):
        return rows.to(weight.dtype) @ weight
    if weight.dtype == torch.bfloat16 and rows.dtype == torch.float32 and widens(weight.device):
        parts = split(rows) if parts is None else parts  # [(E,) 3, m, d]
        lines = parts.flatten(-3, -2)
        if weight.dim() == 3:
            lines = lines.expand(len(weight), -1, -1)
            out = torch.bmm(lines, weight, out_dtype=torch.float32)
        else:
            out = torch.mm(lines, weight, out_dtype=torch.float32)
        return out.unflatten(-2, (3, -1)).sum(-3)
    out = rows.new_empty(*weight.shape[:-2], rows.shape[-2], weight.shape[-1])
    for columns in _chunks(weight, -1):
        out[..., columns] = rows @ weight[..., columns].to(rows.dtype)
    return out


def split(rows: torch.Tensor) -> torch.Tensor:
    """Three bf16 tensors whose sum is the fp32 one, to its last bit or nearly, [..., 3, m, d] from [..., m, d]."""
    parts = []
    for _ in range(3):
        parts.append(rows.bfloat16())
        rows = rows - parts[-1]
    return torch.stack(parts, dim=-3)


@cache
def widens(device: torch.device) -> bool:
    """Whether this device and this torch multiply bf16 matrices into fp32 ones."""
    one = torch.ones(1, 16, 16, dtype=torch.bfloat16, device=device)
    try:
        torch.mm(one[0], one[0], out_dtype=torch.float32)
        torch.bmm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # older versions have no such argument, the CPU no such product
        return False
    return True


def squared_norms(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Squared norms of a weight's columns (axis -2) or rows (axis -1): [d_in] or [d], with E in front for experts."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    along = -3 - axis  # the axis that is kept
    return torch.cat([weight.narrow(along, c.start, c.stop - c.start).to(wide).square().sum(axis)
                      for c in _chunks(weight, along)], dim=-1)  # fmt: skip


def norms_of(writer: Writer, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """`squared_norms` of a live writer's weight, which is `writer.stored()`; kept until the parameter is written to."""
    parameter = writer.parameter
    if parameter.is_inference():  # has no version by which a change could be noticed
        return squared_norms(weight, axis)
    state = (parameter.data_ptr(), parameter._version)
    kept = _norms.setdefault(writer.module, {})
    if axis not in kept or kept[axis][0] != state:
        kept[axis] = state, squared_norms(weight, axis)
    return kept[axis][1]


def _chunks(weight: torch.Tensor, axis: int) -> list[slice]:
    length = weight.shape[axis]
    step = max(1, _CHUNK * length // max(1, weight.numel()))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
