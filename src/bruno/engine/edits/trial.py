"""A trial of the search as data: which direction leaves, and how strongly at each block. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Kernel:
    """Strength of the edit by layer: a tent around `position` (engine.md section 3).

    Attributes:
        max_weight: strength at the peak; 1 removes the direction whole. Below 0 counts as 0, so that in a search "off"
            has mass.
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
        distance = abs(layer - self.position)
        if distance > self.reach:
            return 0.0
        slope = (distance / self.reach) * (self.min_fraction - 1.0) if self.reach > 0 else 0.0
        return max(0.0, self.max_weight * (1.0 + slope))


@dataclass(frozen=True)
class TrialEdit:
    """One trial of the search: which direction is removed, and how strongly per component and layer.

    Attributes:
        scope: "global" removes one direction, taken at `direction_index`, from every layer; "per layer" each its own.
        direction_index: block whose output the global direction is taken from, 0 to L - 1, fractional (neighbours are
            interpolated after aligning their signs). None with scope "per layer".
        kernels: by component name ("attn.o_proj", "mlp.down_proj"); a component without a kernel is left alone.
        further: strength of the directions after the first, relative to `DirectionSet.weights`.
    """

    scope: Literal["global", "per layer"]
    direction_index: float | None
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    further: float = 1.0
