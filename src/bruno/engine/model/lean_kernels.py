"""What a lean block (`lean.py`) is made of beside its products, one GPU kernel each (Triton); `lean_torch.py` says what
each computes.

A step of decoding is bound by how often something is launched and how often activations are read again, so each of these
reads its inputs once. Imported only where Triton and a CUDA device are there.
"""
# ruff: noqa: N803, PLR0917 - Triton names its compile-time arguments in capitals, and takes strides one by one
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bruno.engine.edits import fused
from bruno.engine.edits.rows import Factors
from bruno.engine.model.lean_torch import Heads, Norm

_BLOCK = 1024


@triton.jit(do_not_specialize=["trial", "per_row"])
def _added(
    y, residual, read, write, scale, gain, trials, stream, out, trial, per_row, width, eps,
    DIRECTIONS: tl.constexpr, SCALED: tl.constexpr, NORM: tl.constexpr, BY_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    which = tl.load(trials + token // per_row) if BY_ROW else trial
    value = tl.load(y + token * width + column, mask=inside, other=0.0).to(tl.float32)
    result = value
    for k in tl.static_range(DIRECTIONS):
        place = (which * DIRECTIONS + k) * width + column
        along = tl.sum(value * tl.load(read + place, mask=inside, other=0.0), axis=0)
        result += along * tl.load(write + place, mask=inside, other=0.0)
    if SCALED:
        result *= tl.load(scale + which * width + column, mask=inside, other=0.0)
    result += tl.load(residual + token * width + column, mask=inside, other=0.0).to(tl.float32)
    kept = result.to(stream.dtype.element_ty)
    tl.store(stream + token * width + column, kept, mask=inside)
    if NORM:
        wide = kept.to(tl.float32)  # the padding is zero
        wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
        g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + token * width + column, (wide.to(kept.dtype).to(tl.float32) * g).to(kept.dtype), mask=inside)


@triton.jit
def _normed(x, gain, out, width, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + token * width + column, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + column, (wide.to(value.dtype).to(tl.float32) * g).to(value.dtype), mask=inside)


@triton.jit(do_not_specialize=["trial", "per_row"])
def _gated(gate, up, scale, trials, out, trial, per_row, width, SCALED: tl.constexpr, BY_ROW: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + token * width + column, mask=inside, other=0.0).to(tl.float32)
    result = g * tl.sigmoid(g) * tl.load(up + token * width + column, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        which = tl.load(trials + token // per_row) if BY_ROW else trial
        result *= tl.load(scale + which * width + column, mask=inside, other=0.0)
    tl.store(out + token * width + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms(low, high, gain, column, inside, eps, HALF: tl.constexpr):
    """Both halves of heads [n, half], normed together."""
    root = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
    first = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)[None]
    second = tl.load(gain + HALF + column, mask=inside, other=0.0).to(tl.float32)[None]
    kind = gain.dtype.element_ty
    low, high = (low * root).to(kind).to(tl.float32) * first, (high * root).to(kind).to(tl.float32) * second
    return low.to(kind).to(tl.float32), high.to(kind).to(tl.float32)


@triton.jit(do_not_specialize=["positions"])
def _turned(
    qkv, cos, sin, q_gain, k_gain, place, q_out, k_out, v_out, positions, c_row, c_position,
    q_row, q_head, q_position, k_row, k_head, k_position, v_row, v_head, v_position, q_eps, k_eps,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, AT_PLACE: tl.constexpr,
):  # fmt: skip
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, position = token // positions, token % positions
    head, column = tl.arange(0, HEADS), tl.arange(0, WIDE)
    inside = column < HALF
    both = (head < GROUP)[:, None] & inside[None]
    angle = row * c_row + position * c_position + column
    c_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)[None]
    c_high = tl.load(cos + HALF + angle, mask=inside, other=0.0).to(tl.float32)[None]
    s_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)[None]
    s_high = tl.load(sin + HALF + angle, mask=inside, other=0.0).to(tl.float32)[None]

    size = 2 * HALF
    source = qkv + token * ((GROUP + 2) * GROUPS * size)
    q = source + (group * GROUP + head)[:, None] * size + column[None]
    low = tl.load(q, mask=both, other=0.0).to(tl.float32)
    high = tl.load(q + HALF, mask=both, other=0.0).to(tl.float32)
    if Q_NORM:
        low, high = _rms(low, high, q_gain, column, inside, q_eps, HALF)
    at = q_out + row * q_row + (group * GROUP + head)[:, None] * q_head + position * q_position + column[None]
    tl.store(at, (low * c_low - high * s_low).to(q_out.dtype.element_ty), mask=both)
    tl.store(at + HALF, (high * c_high + low * s_high).to(q_out.dtype.element_ty), mask=both)

    if AT_PLACE:
        position = tl.load(place)
    one = tl.arange(0, 1)[:, None]  # the group's one head of keys, as rows of a tile
    k = source + (GROUP * GROUPS + group) * size + one + column[None]
    low = tl.load(k, mask=inside[None], other=0.0).to(tl.float32)
    high = tl.load(k + HALF, mask=inside[None], other=0.0).to(tl.float32)
    if K_NORM:
        low, high = _rms(low, high, k_gain, column, inside, k_eps, HALF)
    at = k_out + row * k_row + group * k_head + position * k_position + one + column[None]
    tl.store(at, (low * c_low - high * s_low).to(k_out.dtype.element_ty), mask=inside[None])
    tl.store(at + HALF, (high * c_high + low * s_high).to(k_out.dtype.element_ty), mask=inside[None])

    v = source + ((GROUP + 1) * GROUPS + group) * size + column
    at = v_out + row * v_row + group * v_head + position * v_position + column
    tl.store(at, tl.load(v, mask=inside, other=0.0), mask=inside)
    tl.store(at + HALF, tl.load(v + HALF, mask=inside, other=0.0), mask=inside)


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """As `lean_torch.normed`."""
    x = x.contiguous()
    width, out = x.shape[-1], torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _normed[(x.numel() // width,)](
        x, norm.gain, out, width, norm.eps, BLOCK=block, num_warps=min(16, max(1, block // 512))
    )
    return out


def scaled(x: torch.Tensor, factors: Factors) -> torch.Tensor:
    """As `lean_torch.scaled`."""
    return x if factors.input_scale is None else fused.scaled(x, factors.input_scale, factors.rows)


def added(
    y: torch.Tensor, residual: torch.Tensor, factors: Factors, norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `lean_torch.added`."""
    y, residual = y.contiguous(), residual.contiguous()
    tokens, width = y.numel() // y.shape[-1], y.shape[-1]
    trials, trial, per_row = _rows(factors, y, tokens)
    stream = torch.empty_like(residual)
    out = None if norm is None else torch.empty_like(residual)
    block = triton.next_power_of_2(width)
    directions = 0 if factors.read is None else factors.read.shape[1]
    _added[(tokens,)](
        y, residual, y if factors.read is None else factors.read, y if factors.write is None else factors.write,
        y if factors.output_scale is None else factors.output_scale, y if norm is None else norm.gain, trials, stream,
        stream if out is None else out, trial, per_row, width, 0.0 if norm is None else norm.eps,
        DIRECTIONS=directions, SCALED=factors.output_scale is not None, NORM=norm is not None,
        BY_ROW=isinstance(factors.rows, torch.Tensor), BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return stream, out


def gated(gate: torch.Tensor, up: torch.Tensor, factors: Factors) -> torch.Tensor:
    """As `lean_torch.gated`."""
    gate, up = gate.contiguous(), up.contiguous()
    tokens, width = gate.numel() // gate.shape[-1], gate.shape[-1]
    trials, trial, per_row = _rows(factors, gate, tokens)
    out = torch.empty_like(gate)
    _gated[(tokens, triton.cdiv(width, _BLOCK))](
        gate, up, gate if factors.input_scale is None else factors.input_scale, trials, out, trial, per_row, width,
        SCALED=factors.input_scale is not None, BY_ROW=isinstance(factors.rows, torch.Tensor), BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def turned(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: Heads,
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `lean_torch.turned`."""
    qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
    rows, positions, _ = qkv.shape
    q = qkv.new_empty(rows, positions, heads.queries, heads.size).transpose(1, 2)
    if into is None:
        k, v = (qkv.new_empty(rows, positions, heads.groups, heads.size).transpose(1, 2) for _ in range(2))
        place = None
    else:
        k, v, place = into
    group, half = heads.queries // heads.groups, heads.size // 2
    q_norm, k_norm = heads.query_norm, heads.key_norm
    _turned[(rows * positions, heads.groups)](
        qkv, cos, sin, qkv if q_norm is None else q_norm.gain, qkv if k_norm is None else k_norm.gain,
        qkv if place is None else place, q, k, v,
        positions, cos.stride(0) if len(cos) > 1 else 0, cos.stride(1), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        0.0 if q_norm is None else q_norm.eps, 0.0 if k_norm is None else k_norm.eps,
        GROUP=group, GROUPS=heads.groups, HALF=half, HEADS=triton.next_power_of_2(group),
        WIDE=triton.next_power_of_2(half), Q_NORM=q_norm is not None, K_NORM=k_norm is not None,
        AT_PLACE=place is not None, num_warps=1 if group * half <= 512 else 4,
    )  # fmt: skip
    return q, k, v


def _rows(factors: Factors, like: torch.Tensor, tokens: int) -> tuple[torch.Tensor, int, int]:
    """(the trial of each row, or anything; the trial of all; tokens of a row) for a kernel."""
    if isinstance(factors.rows, int):
        return like, factors.rows, 1
    return factors.rows, 0, tokens // len(factors.rows)
