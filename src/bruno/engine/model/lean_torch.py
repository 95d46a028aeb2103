"""What a lean block (`lean.py`) is made of beside its products, in plain torch: the reference for `lean_kernels.py`, and
what runs where there is no Triton.

Sums and products are in fp32 and rounded once, when they are stored. Pure tensors; touches no model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bruno.engine.edits.rows import Factors


class Norm(NamedTuple):
    """A root-mean-square norm: gain [n], and what is added under the root."""

    gain: torch.Tensor
    eps: float


class Heads(NamedTuple):
    """How queries, keys and values lie side by side: H query heads, G heads of keys and values, each `size` wide."""

    queries: int
    groups: int
    size: int
    query_norm: Norm | None = None
    key_norm: Norm | None = None


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """x / rms(x) * gain over the last axis."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return wide.to(x.dtype) * norm.gain


def scaled(x: torch.Tensor, factors: Factors) -> torch.Tensor:
    """input_scale * x, [B, S, d_in]; x where the edit has none."""
    if factors.input_scale is None:
        return x
    return (x.float() * _of_rows(factors.input_scale, factors.rows)).to(x.dtype)


def added(
    y: torch.Tensor, residual: torch.Tensor, factors: Factors, norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """residual + output_scale * (y + (y read^T) write), [B, S, d]; and that normed, where a norm is given."""
    wide = y.float()
    if factors.read is not None and factors.write is not None:
        read, write = (factors.read[factors.rows], factors.write[factors.rows])
        wide = wide + (wide @ read.transpose(-1, -2)) @ write
    if factors.output_scale is not None:
        wide = wide * _of_rows(factors.output_scale, factors.rows)
    stream = (residual.float() + wide).to(residual.dtype)
    return stream, None if norm is None else normed(stream, norm)


def gated(gate: torch.Tensor, up: torch.Tensor, factors: Factors) -> torch.Tensor:
    """input_scale * silu(gate) * up, [B, S, d_in]."""
    return scaled(torch.nn.functional.silu(gate.float()) * up.float(), factors).to(gate.dtype)


def turned(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: Heads,
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values out of one product: normed where the family does that, turned by their positions.

    Args:
        qkv: [B, S, (H + 2 G) size].
        cos, sin: [B or 1, S, size].
        into: where keys and values go, [B, G, S, size]; or, with a place [1], [R, G, W, size] of fixed length, where one
            position (S = 1) goes to that place of the first rows.

    Returns:
        Queries [B, H, S, size]; keys and values [B, G, S, size], or those of `into`.
    """
    shape = (*qkv.shape[:2], -1, heads.size)
    sizes = [count * heads.size for count in (heads.queries, heads.groups, heads.groups)]
    q, k, v = (part.view(shape) for part in qkv.split(sizes, dim=-1))
    q, k = (x if norm is None else normed(x, norm) for x, norm in ((q, heads.query_norm), (k, heads.key_norm)))
    q, k = (_rotated(x, cos, sin) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if into is None:
        return q, k, v
    keys, values, place = into
    if place is None:
        keys.copy_(k)
        values.copy_(v)
    else:
        keys[: len(k)].index_copy_(2, place, k)
        values[: len(v)].index_copy_(2, place, v)
    return q, keys, values


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, S, heads, size]: the pairs (i, i + size / 2) turned."""
    low, high = x.float().chunk(2, dim=-1)
    turned_by = torch.cat([-high, low], dim=-1) * sin.float()[:, :, None]
    return (x.float() * cos.float()[:, :, None] + turned_by).to(x.dtype)


def _of_rows(tensor: torch.Tensor, rows: torch.Tensor | int) -> torch.Tensor:
    """A tensor [T, n] as the rows need it: [B, 1, n], or [n]."""
    return tensor[rows] if isinstance(rows, int) else tensor[rows][:, None]
