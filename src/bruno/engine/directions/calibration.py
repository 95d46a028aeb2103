"""Activation calibration: one factor on every strength, from how strongly the bad prompts activate the direction. Pure."""

from __future__ import annotations

import torch

from bruno.engine.directions.algebra import layer_of
from bruno.engine.directions.record import NotApplicable

LOW, HIGH = 0.5, 2.0


def activation_calibration(
    bad: torch.Tensor, direction: torch.Tensor, *, percentile: float, layer_frac: float
) -> float:
    """clamp(percentile(|R v|) / mean(|R v|), 0.5, 2) over the bad prompts, at one layer.

    Args:
        bad: captures, [n, L + 1, d].
        direction: [L + 1, d], unit.
        percentile: 0 to 1.
        layer_frac: where, as a share of the depth: 0 is the first block's output, 1 the last one's.

    Raises:
        NotApplicable: there is no direction at that layer, or nothing activates it.
    """
    block = round(layer_frac * (bad.shape[1] - 2))
    activation = (layer_of(bad, block + 1, direction.device) @ direction[block + 1].double()).abs()
    mean = activation.mean()
    if not mean > 0:
        raise NotApplicable(f"there is no direction after block {block}")
    return float((activation.quantile(percentile) / mean).clamp(LOW, HIGH))
