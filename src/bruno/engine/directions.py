"""The direction that carries a behaviour, per layer: pure functions on tensors, composed by `find_directions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bruno.settings.engine import Directions


@dataclass(frozen=True)
class DirectionSet:
    """Directions to remove.

    Attributes:
        vectors: [L + 1, k, d] fp32, orthonormal over k at each layer; index l is the output of block l, 0 the embedding.
        weights: [k] fp32, relative strength of each direction, the first 1.
        used: names of the methods that made them, in order.
        skipped: method name to the reason it could not apply.
        separation: [L + 1] fp32, class separation of the first direction in pooled standard deviations (d').
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    used: tuple[str, ...]
    skipped: dict[str, str]
    separation: torch.Tensor


def find_directions(bad: torch.Tensor, good: torch.Tensor, settings: Directions) -> DirectionSet:
    """Directions from captures of the bad and the good prompts ([n, L + 1, d] each), as the settings say.

    Raises:
        InputError: fewer than two prompts in a class, or captures that do not differ at any layer.
    """
    raise NotImplementedError
