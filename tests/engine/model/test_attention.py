"""The GPU's attention of single tokens, against torch's own: by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton comes with torch's CUDA build")

from bruno.engine.model.attention import grouped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])]  # the interpreter multiplies bf16 as integers
ROWS = 3


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (28, 4), (20, 1)])
@pytest.mark.parametrize(("size", "v_size"), [(16, 16), (80, 80), (24, 16), (128, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_head_attends_to_its_groups_keys(
    heads: int, groups: int, size: int, v_size: int, dtype: torch.dtype
) -> None:
    """On views into longer buffers, with positions that are masked before and behind."""
    generator = torch.Generator().manual_seed(heads + size)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    query = random(ROWS, 1, heads, size).transpose(1, 2)
    keys, values = random(ROWS, groups, 96, size)[:, :, :64], random(ROWS, groups, 96, v_size)[:, :, :64]
    mask = torch.zeros(ROWS, 1, 1, 96, dtype=dtype, device=DEVICE)
    for row, (first, last) in enumerate([(0, 64), (5, 40), (33, 34)]):
        mask[row, ..., :first] = mask[row, ..., last:] = torch.finfo(dtype).min
    mask = mask[..., :64]
    found = grouped(query, keys, values, mask, 0.3)
    wide = [t.double().repeat_interleave(heads // groups, 1) for t in (keys, values)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.double(), *wide, attn_mask=mask.double(), scale=0.3
    ).transpose(1, 2)
    assert found.shape == (ROWS, 1, heads, v_size)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 3e-2)
