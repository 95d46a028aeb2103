# ruff: noqa: N803 - Triton names its compile-time arguments in capitals
# pyright: reportMissingImports=false, reportIndexIssue=false
"""The hooks' arithmetic in one kernel each, for GPUs (Triton): the formulas of `session._Site` in fp32, without the copies
in between.

A step of decoding reads a few megabytes of activations and many of weights; spread over eight small operations an edit
would take as long as the projection that it follows. Imported only where Triton and a CUDA device are there
(`session.try_kernels`); everything else runs the plain torch code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit(do_not_specialize=["trial", "per_row"])
def _scaled(x, scale, out, trials, trial, per_row, width, BY_ROW: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    which = tl.load(trials + token // per_row) if BY_ROW else trial
    value = tl.load(x + token * width + column, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(scale + which * width + column, mask=inside, other=0.0)
    tl.store(out + token * width + column, (value * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["trial", "per_row"])
def _projected(
    y, read, write, scale, trials, trial, per_row, width,
    DIRECTIONS: tl.constexpr, SCALED: tl.constexpr, BY_ROW: tl.constexpr, BLOCK: tl.constexpr,
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
    tl.store(y + token * width + column, result.to(y.dtype.element_ty), mask=inside)


def scaled(x: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor | int) -> torch.Tensor:
    """scale[trial of the row] * x.

    Args:
        x: [B, ..., d_in].
        scale: [T, d_in] fp32.
        rows: the trial of each row [B], or of all.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens, width = x.numel() // x.shape[-1], x.shape[-1]
    by_row = isinstance(rows, torch.Tensor)
    _scaled[(tokens, triton.cdiv(width, _BLOCK))](
        x, scale, out, rows if by_row else x, 0 if by_row else rows, tokens // len(rows) if by_row else 1, width,
        BY_ROW=by_row, BLOCK=_BLOCK,
    )  # fmt: skip
    return out


def projected(
    y: torch.Tensor, read: torch.Tensor, write: torch.Tensor, scale: torch.Tensor | None, rows: torch.Tensor | int
) -> torch.Tensor:
    """scale * (y + (y read^T) write), of the row's trial, in place where `y` is contiguous.

    Args:
        y: [B, ..., d].
        read, write: [T, k, d] fp32.
        scale: [T, d] fp32, or None.
        rows: the trial of each row [B], or of all.
    """
    y = y.contiguous()
    tokens, width = y.numel() // y.shape[-1], y.shape[-1]
    by_row = isinstance(rows, torch.Tensor)
    block = triton.next_power_of_2(width)
    _projected[(tokens,)](
        y, read, write, scale if scale is not None else y, rows if by_row else y, 0 if by_row else rows,
        tokens // len(rows) if by_row else 1, width,
        DIRECTIONS=read.shape[1], SCALED=scale is not None, BY_ROW=by_row, BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return y


def try_out(device: torch.device) -> None:
    """Compile and run both kernels once.

    Raises:
        Exception: whatever Triton raises where it cannot.
    """
    x = torch.ones(2, 3, 64, dtype=torch.bfloat16, device=device)
    ones, rows = torch.ones(2, 64, device=device), torch.tensor([1, 0], device=device)
    scaled(x, ones, rows)
    projected(x, ones[:, None], ones[:, None], ones, rows)
