"""Directions: what was planted is found, and what must not be in them is not."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.directions.algebra import mean_difference
from bruno.engine.directions.find import DirectionSet, Samples, find_directions
from bruno.errors import InputError
from bruno.settings.engine import Directions, EngineSettings

LAYERS, HIDDEN = 3, 64


def planted(seed: int = 0, count: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes that differ along one unit direction a layer, far from the origin: (bad, good, directions)."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(LAYERS + 1, HIDDEN, generator=generator), dim=-1)
    offset = 20 * torch.randn(LAYERS + 1, HIDDEN, generator=generator)
    good = offset + torch.randn(count, LAYERS + 1, HIDDEN, generator=generator)
    bad = offset + 6 * truth + torch.randn(count, LAYERS + 1, HIDDEN, generator=generator)
    return bad, good, truth


def find(bad: torch.Tensor, good: torch.Tensor, directions: Directions) -> DirectionSet:
    return find_directions(Samples(bad, good), EngineSettings(directions=directions))


def test_a_planted_direction_is_found() -> None:
    bad, good, truth = planted()
    found = find(bad, good, Directions(project_good_mean=False))
    assert found.vectors.shape == (LAYERS + 1, 1, HIDDEN)
    assert ((found.vectors[:, 0] * truth).sum(-1) > 0.98).all()
    assert (found.separation > 4).all()
    assert found.used == ("mean difference",)


def test_projected_directions_are_orthogonal_to_the_good_mean() -> None:
    bad, good, _ = planted()
    found = find(bad, good, Directions())
    mean = torch.nn.functional.normalize(good.mean(0), dim=-1)
    assert ((found.vectors[:, 0] * mean).sum(-1).abs() < 1e-6).all()
    assert torch.allclose(found.vectors.norm(dim=-1), torch.ones(LAYERS + 1, 1), atol=1e-6)
    assert found.used == ("mean difference", "projected")


def test_means_are_taken_in_double_precision() -> None:
    bad, good, truth = planted(count=400)
    shift = 3e4 * torch.ones(HIDDEN)  # in fp32 sums the difference of six would drown in rounding
    direction = mean_difference(bad + shift, good + shift)
    assert direction.dtype == torch.float64
    assert ((direction.float() * truth).sum(-1) > 0.97).all()


def test_a_layer_where_the_classes_agree_has_no_direction_and_is_named() -> None:
    bad, good, _ = planted()
    bad[:, 0] = good[:, 0] = good[0, 0]  # the embedding of a last token that all prompts share
    bad[:, 2] = good[:, 2]
    found = find(bad, good, Directions())
    assert not found.vectors[0].any()
    assert not found.vectors[2].any()
    assert found.skipped == {
        "mean difference": "the prompt sets do not differ after block 1; continuing with no direction there"
    }


@pytest.mark.parametrize(
    ("bad", "good", "message"),
    [
        (torch.randn(1, 4, 8), torch.randn(5, 4, 8), "at least two bad prompts"),
        (torch.randn(5, 4, 8), torch.randn(0, 4, 8), "at least two good prompts"),
        (torch.ones(5, 4, 8), torch.ones(5, 4, 8), "do not differ at any layer"),
        (torch.full((5, 4, 8), torch.nan), torch.ones(5, 4, 8), "not finite"),
    ],
)
def test_samples_without_a_direction_are_refused(bad, good, message) -> None:
    with pytest.raises(InputError, match=message):
        find(bad, good, Directions())


def test_winsorised_captures_are_named() -> None:
    bad, good, _ = planted()
    assert find(bad, good, Directions(winsorize_quantile=0.99)).used[0] == "winsorised captures"
