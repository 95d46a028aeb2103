"""Activation calibration: one factor, clamped, at the layer that was named."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.directions.calibration import activation_calibration
from bruno.engine.directions.record import NotApplicable


def samples(*activations: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Four blocks; the activations along the first axis after block 2, ones elsewhere."""
    bad = torch.ones(len(activations), 5, 3)
    bad[:, 3, 0] = torch.tensor(activations)
    return bad, torch.eye(3)[0].expand(5, 3)


@pytest.mark.parametrize(
    ("activations", "percentile", "expected"),
    [
        ((1.0, 2.0, 3.0, 4.0, 5.0), 0.75, 4 / 3),
        ((1.0, -2.0, 3.0, -4.0, 5.0), 0.75, 4 / 3),  # absolute values
        ((1.0, 2.0, 3.0, 4.0, 5.0), 0.5, 1.0),
        ((0.0, 0.0, 0.0, 0.0, 9.0), 0.5, 0.5),  # clamped
        ((0.1, 0.1, 0.1, 0.1, 9.0), 0.99, 2.0),
    ],
)
def test_the_percentile_over_the_mean_within_its_bounds(activations, percentile, expected) -> None:
    bad, direction = samples(*activations)
    factor = activation_calibration(bad, direction, percentile=percentile, layer_frac=2 / 3)
    assert factor == pytest.approx(expected)


def test_the_layer_is_a_share_of_the_depth() -> None:
    bad, direction = samples(1.0, 2.0, 3.0)
    measured = [activation_calibration(bad, direction, percentile=0.99, layer_frac=f) for f in (0.0, 0.6, 2 / 3, 1.0)]
    assert [value == pytest.approx(1.0) for value in measured] == [True, False, False, True]


def test_without_a_direction_there_it_does_not_apply() -> None:
    bad, direction = samples(1.0, 2.0)
    with pytest.raises(NotApplicable, match="no direction after block 2"):
        activation_calibration(bad, torch.zeros_like(direction), percentile=0.75, layer_frac=0.6)
