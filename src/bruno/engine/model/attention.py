"""Attention of one new token a row over keys of a fixed length, for GPUs (Triton): each key is read once for all heads of
its group.

The library's attention makes such a query look like a short prompt and pads it to 64 rows of a tile, of which a group of
seven heads fills seven. Registered under a name of its own in the library's table of attention functions; everything but
a single new token goes to the library's own `sdpa`. Imported only where Triton and a CUDA device are there.
"""
# ruff: noqa: N803, PLR0917 - Triton names its compile-time arguments in capitals, and takes strides one by one
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from bruno.engine.edits.rows import NONE, Factors

NAME = "bruno_single_token"
_KEYS = 32  # read at a time; lengths are multiples of it (graphs.py)


@triton.jit(do_not_specialize=["length", "trial"])
def _grouped(
    query, key, value, mask, scale, trials, out, scaling, length, trial,
    q_row, q_head, k_row, k_head, k_place, v_row, v_head, v_place, m_row, o_row,
    GROUP: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
    V_WIDE: tl.constexpr, KEYS: tl.constexpr, EXACT: tl.constexpr, SCALED: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, column, v_column, place = tl.arange(0, HEADS), tl.arange(0, WIDE), tl.arange(0, V_WIDE), tl.arange(0, KEYS)
    in_group = (head < GROUP)[:, None]
    q = tl.load(
        query + row * q_row + (group * GROUP + head)[:, None] * q_head + column[None],
        mask=in_group & (column < SIZE)[None],
        other=0.0,
    )
    highest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    result = tl.zeros([HEADS, V_WIDE], tl.float32)
    for begin in range(0, length, KEYS):
        at = begin + place
        k = tl.load(
            key + row * k_row + group * k_head + at[None] * k_place + column[:, None],
            mask=(column < SIZE)[:, None],
            other=0.0,
        )
        score = tl.dot(q, k, input_precision="ieee") if EXACT else tl.dot(q, k)
        score = score * scaling + tl.load(mask + row * m_row + at).to(tl.float32)[None]
        now = tl.maximum(highest, tl.max(score, 1))
        share = tl.exp(score - now[:, None])
        fade = tl.exp(highest - now)
        v = tl.load(
            value + row * v_row + group * v_head + at[:, None] * v_place + v_column[None],
            mask=(v_column < V_SIZE)[None],
            other=0.0,
        )
        if EXACT:
            result = result * fade[:, None] + tl.dot(share, v, input_precision="ieee")
        else:
            result = result * fade[:, None] + tl.dot(share.to(v.dtype), v)
        total = total * fade + tl.sum(share, 1)
        highest = now
    result = result / total[:, None]
    inside = in_group & (v_column < V_SIZE)[None]
    column_out = (group * GROUP + head)[:, None] * V_SIZE + v_column[None]
    if SCALED:
        which = tl.load(trials + row) if BY_ROW else trial
        result *= tl.load(scale + which * o_row + column_out, mask=inside, other=0.0)
    tl.store(out + row * o_row + column_out, result.to(out.dtype.element_ty), mask=inside)


def grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    factors: Factors = NONE,
) -> torch.Tensor:
    """softmax(scaling q k^T + mask) v, [B, 1, H, V], times the input scale of an edit of what reads it.

    Args:
        query: [B, H, 1, D].
        key, value: [B, G, S, D] and [B, G, S, V], S a multiple of 32, H a multiple of G.
        mask: [B, 1, 1, S], added to the scores; finite.
        factors: its input scale [T, H V], where it has one, is of the trial of each row.
    """
    rows, heads, _, size = query.shape
    groups, length, v_size = key.shape[1], key.shape[2], value.shape[3]
    out = torch.empty(rows, 1, heads, v_size, dtype=query.dtype, device=query.device)
    if query.stride(3) != 1 or key.stride(3) != 1 or value.stride(3) != 1 or mask.stride(3) != 1:
        raise ValueError("the last axis of queries, keys, values and mask lies without gaps")
    scale, of_rows = factors.input_scale, factors.rows
    by_row = isinstance(of_rows, torch.Tensor)
    _grouped[(rows, groups)](
        query, key, value, mask, query if scale is None else scale, of_rows if by_row else query, out, scaling, length,
        0 if by_row else of_rows,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
        value.stride(0), value.stride(1), value.stride(2), mask.stride(0), out.stride(0),
        GROUP=heads // groups, SIZE=size, V_SIZE=v_size, HEADS=max(16, triton.next_power_of_2(heads // groups)),
        WIDE=max(16, triton.next_power_of_2(size)), V_WIDE=max(16, triton.next_power_of_2(v_size)), KEYS=_KEYS,
        EXACT=query.dtype == torch.float32, SCALED=scale is not None, BY_ROW=by_row, num_warps=4,
    )  # fmt: skip
    return out


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """What the library calls: the kernel for one new token with a mask as `graphs.py` makes it, `sdpa` for all else."""
    odd = (
        options.get("softcap") is not None
        or options.get("position_bias") is not None
        or options.get("s_aux") is not None
    )
    fits = attention_mask is not None and attention_mask.shape[1:3] == (1, 1) and key.shape[2] % _KEYS == 0
    if odd or not fits or query.shape[2] != 1 or attention_mask is None or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)  # type: ignore[arg-type]
    return grouped(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(NAME, attend)
