"""The GPU's kernels of lean blocks, against plain torch: by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton comes with torch's CUDA build")

from bruno.engine.edits.rows import NONE, Factors
from bruno.engine.model import lean_kernels, lean_torch
from bruno.engine.model.attention import grouped
from bruno.engine.model.lean_torch import Heads, Norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-5}  # some places: the interpreter cuts where a GPU rounds
DTYPES = [torch.float32, torch.bfloat16]
TRIALS, BATCH, POSITIONS = 3, 4, 2


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(DEVICE, dtype)


def edit(rows: int | list[int], width: int, inner: int, *, directions: int = 2, scaled: bool = True) -> Factors:
    placed = rows if isinstance(rows, int) else torch.tensor(rows, device=DEVICE)
    near_one = [1 + 0.1 * random(TRIALS, size) for size in (inner, width)]
    return Factors(
        near_one[0] if scaled else None,
        random(TRIALS, directions, width) / 9,
        random(TRIALS, directions, width, seed=1) / 9,
        near_one[1] if scaled else None,
        placed,
    )


def test_nothing_is_missing() -> None:
    """Whatever a lean block calls is there in both."""
    assert {"normed", "scaled", "added", "gated", "turned"} <= {*dir(lean_kernels)} & {*dir(lean_torch)}


@pytest.mark.parametrize("width", [80, 3584])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(width: int, dtype: torch.dtype) -> None:
    x, norm = random(BATCH, POSITIONS, width, dtype=dtype), Norm(random(width, dtype=dtype, seed=1), 1e-6)
    found, expected = (module.normed(x, norm) for module in (lean_kernels, lean_torch))
    torch.testing.assert_close(found.float(), expected.float(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("rows", [1, [0, 2, 1, 2]], ids=["one trial", "by row"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("factors", ["none", "plain", "scaled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_edited_added_and_normed(
    rows: int | list[int], norm: bool, factors: str, dtype: torch.dtype
) -> None:
    width = 80
    y, residual = random(BATCH, POSITIONS, width, dtype=dtype), random(BATCH, POSITIONS, width, dtype=dtype, seed=1)
    given = NONE if factors == "none" else edit(rows, width, 8, scaled=factors == "scaled")
    gains = Norm(random(width, dtype=dtype), 1e-6) if norm else None
    found, expected = (module.added(y, residual, given, gains) for module in (lean_kernels, lean_torch))
    assert (found[1] is None) == (expected[1] is None) == (not norm)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("rows", [1, [0, 2, 1, 2]], ids=["one trial", "by row"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_open_and_scale(rows: int | list[int], scaled: bool, dtype: torch.dtype) -> None:
    gate, up = random(BATCH, POSITIONS, 1500, dtype=dtype), random(BATCH, POSITIONS, 1500, dtype=dtype, seed=1)
    given = edit(rows, 8, 1500, scaled=scaled)
    found, expected = (module.gated(gate, up, given) for module in (lean_kernels, lean_torch))
    torch.testing.assert_close(found.float(), expected.float(), rtol=ROUNDING[dtype], atol=1e-5)


@pytest.mark.parametrize("heads", [Heads(4, 4, 16), Heads(6, 2, 24), Heads(7, 1, 80)], ids=str)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["positions by row", "positions of all"])
@pytest.mark.parametrize("fixed", [False, True], ids=["new", "into buffers"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_turn(heads: Heads, norms: bool, shared: bool, fixed: bool, dtype: torch.dtype) -> None:
    positions = 1 if fixed else 3
    if norms:
        heads = heads._replace(query_norm=Norm(random(heads.size, dtype=dtype), 1e-6),
                               key_norm=Norm(random(heads.size, dtype=dtype, seed=1), 1e-5))  # fmt: skip
    qkv = random(BATCH, positions, (heads.queries + 2 * heads.groups) * heads.size, dtype=dtype)
    angles = random(1 if shared else BATCH, positions, heads.size)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    results = []
    for module in (lean_kernels, lean_torch):
        into = None
        if fixed:
            keys, values = (
                torch.zeros(BATCH + 2, heads.groups, 8, heads.size, dtype=dtype, device=DEVICE) for _ in "kv"
            )
            into = (keys, values, torch.tensor([5], device=DEVICE))
        results.append(module.turned(qkv, cos, sin, heads, into))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("rows", [1, [0, 2, 1]], ids=["one trial", "by row"])
def test_attention_is_scaled_for_what_reads_it(rows: int | list[int]) -> None:
    query, keys, values = random(3, 6, 1, 16), random(3, 2, 32, 16), random(3, 2, 32, 16, seed=1)
    mask = torch.zeros(3, 1, 1, 32, device=DEVICE)
    given = edit(rows, 8, 96)
    plain = grouped(query, keys, values, mask, 0.25).view(3, 1, 96)
    found = grouped(query, keys, values, mask, 0.25, given).view(3, 1, 96)
    torch.testing.assert_close(found, lean_torch.scaled(plain, given), rtol=1e-5, atol=1e-6)
