"""What an edit is: data. Kernels give strengths by layer, and the algebra of engine.md section 3 turns them into tensors.

During a search no weight changes. An edit of one writer ``y = W x + b`` is four tensors with a leading trial axis T, so that the
rows of one batch can belong to different trials:

    x' = input_scale * x                        [T, d_in]
    y' = output_scale * (y + (y read^T) write)  read, write [T, k, d]; output_scale [T, d]

`session.py` applies them around the running modules, `bake.py` applies the same ones to stored weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bruno.engine.architectures import Writer
    from bruno.engine.directions import DirectionSet

NormMode = Literal["column", "none", "row", "frobenius"]


@dataclass(frozen=True)
class Kernel:
    """Strength of the edit by layer: a tent around `position` (engine.md section 3).

    Args:
        max_weight: strength at the peak; 1 removes the direction whole. Values below 0 count as 0, so that "off" has mass in a search.
        position: layer of the peak, 0 to L - 1, fractional.
        min_fraction: share of `max_weight` left at distance `reach`, 0 to 1.
        reach: layers further than this from the peak are not edited; at least 0.
    """

    max_weight: float
    position: float
    min_fraction: float
    reach: float

    def weight(self, layer: int) -> float:
        """Strength at a decoder block (0-based), 0 or more."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrialEdit:
    """One trial of the search: which direction is removed, and how strongly per component and layer.

    Args:
        scope: "global" removes one direction, taken at `direction_index`, from every layer; "per layer" removes each layer's own.
        direction_index: block whose output the global direction is taken from, 0 to L - 1, fractional (neighbours are
            interpolated after aligning their signs). None with scope "per layer".
        kernels: by component name ("attn.o_proj", "mlp.down_proj"); a component without a kernel is left alone.
    """

    scope: Literal["global", "per layer"]
    direction_index: float | None
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


@dataclass(frozen=True)
class WriterEdit:
    """The edit of one writer for T trials; tensors as in the module docstring, fp32, on the writer's device."""

    input_scale: torch.Tensor | None
    read: torch.Tensor
    write: torch.Tensor
    output_scale: torch.Tensor | None


@dataclass(frozen=True)
class EditBatch:
    """Edits of T trials, by the writer's index in `find_writers`' list. Writers no trial touches are absent.

    `first_layer[t]` is the lowest block that trial t edits (L when it edits none): below it the base model's states hold.
    """

    trials: int
    edits: Mapping[int, WriterEdit]
    first_layer: tuple[int, ...]


def build_edits(
    trials: Sequence[TrialEdit], directions: DirectionSet, writers: Sequence[Writer], norm_mode: NormMode = "column"
) -> EditBatch:
    """Turn trials into tensors (fp32; T = len(trials)). Reads each touched writer's weight once.

    Raises:
        InputError: a kernel names a component the model does not have, or a direction index out of range.
    """
    raise NotImplementedError
