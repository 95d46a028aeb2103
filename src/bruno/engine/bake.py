"""The edit applied to stored weights: the same algebra as the hooks, in fp32, cast back once. Pure: tensors in, tensors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bruno.engine.edits import WriterEdit


def bake_weight(weight: torch.Tensor, edit: WriterEdit, trial: int = 0, *, transposed: bool = False) -> torch.Tensor:
    """W' in the dtype and orientation of `weight` ([d, d_in], or [d_in, d] when transposed)."""
    raise NotImplementedError


def bake_bias(bias: torch.Tensor, edit: WriterEdit, trial: int = 0) -> torch.Tensor:
    """b' [d] in the dtype of `bias`."""
    raise NotImplementedError
