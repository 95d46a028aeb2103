"""The GPU's kernels, against the plain hooks: run by Triton's interpreter where there is no GPU, compiled where there is.

Triton comes with torch's CUDA build only, so these run where that (or the package `triton`) is installed.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton comes with torch's CUDA build")

from bruno.engine.edits import fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7}  # one place: the interpreter cuts where a GPU rounds
TRIALS, BATCH, POSITIONS = 3, 4, 2


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


@pytest.mark.parametrize("rows", [1, [0, 2, 1, 2]], ids=["one trial", "by row"])
@pytest.mark.parametrize("width", [48, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_scaled_by_their_rows_trial(rows: int | list[int], width: int, dtype: torch.dtype) -> None:
    x, scale = random(BATCH, POSITIONS, width, dtype=dtype), 1 + 0.1 * random(TRIALS, width)
    before = x.clone()
    placed = rows if isinstance(rows, int) else torch.tensor(rows, device=DEVICE)
    found = fused.scaled(x, scale, placed)
    factors = scale[placed] if isinstance(rows, int) else scale[placed][:, None]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), (x * factors).float(), rtol=ROUNDING[dtype], atol=1e-6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("rows", [0, [0, 2, 1, 2]], ids=["one trial", "by row"])
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_leave_outputs(rows: int | list[int], directions: int, scaled: bool, dtype: torch.dtype) -> None:
    width = 80
    y = random(BATCH, POSITIONS, width, dtype=dtype)
    read, write = random(TRIALS, directions, width) / 9, random(TRIALS, directions, width) / 9
    scale = 1 + 0.1 * random(TRIALS, width) if scaled else None
    of_row = torch.tensor([rows] * BATCH if isinstance(rows, int) else rows, device=DEVICE)
    along = torch.einsum("bsd,bkd->bsk", y.double(), read[of_row].double())
    expected = y.double() + torch.einsum("bsk,bkd->bsd", along, write[of_row].double())
    if scale is not None:
        expected *= scale[of_row][:, None]
    found = fused.projected(y.clone(), read, write, scale, rows if isinstance(rows, int) else of_row)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=ROUNDING[dtype], atol=1e-5)
