"""How each family of models writes to its residual stream: an explicit table, and discovery for unknown dense decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Writer:
    """A module whose output is added to the residual stream: y = W x (+ b).

    Attributes:
        layer: index of its decoder block, 0 to L - 1.
        component: "attn.o_proj" or "mlp.down_proj", whatever the family calls it.
        module: the live module; its forward takes [..., d_in] and gives [..., d].
        name: its dotted name in the model, e.g. "model.layers.3.self_attn.o_proj".
        transposed: True where the stored weight is [d_in, d] (GPT-2's Conv1D).
        post_norm_gain: gain g of the norm that its output passes before it is added, [d], or None. Directions become g * v.
    """

    layer: int
    component: str
    module: nn.Module
    name: str
    transposed: bool = False
    post_norm_gain: torch.Tensor | None = None

    def weight(self) -> torch.Tensor:
        """W as [d, d_in] in fp32."""
        raise NotImplementedError


def find_writers(model: nn.Module) -> list[Writer]:
    """All writers, ordered by layer then component (attention first).

    Raises:
        UnsupportedModel: the family is refused for now, or only a part was found; the message lists what was found.
    """
    raise NotImplementedError
