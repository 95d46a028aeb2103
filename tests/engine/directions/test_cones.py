"""Concept cones: planted clusters are found, noise is not made into clusters, and useless directions leave."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.directions.algebra import mean_difference, project_out
from bruno.engine.directions.cones import concept_cones, held_out_drops
from bruno.engine.directions.record import NotApplicable
from tests.engine.directions.planted import concepts, cosine, noise, units

USUAL = {"layer": 1, "most": 5, "min_size": 10, "min_silhouette": 0.1}


def test_planted_clusters_give_their_directions() -> None:
    bad, good, shared, own = concepts((60, 40, 30))
    nothing = torch.zeros(3, 0, 24, dtype=torch.float64)
    cones = concept_cones(bad, good, nothing, **USUAL)
    assert cones.clusters.count == 3
    assert torch.equal(cones.clusters.labels, torch.tensor([0] * 60 + [1] * 40 + [2] * 30))
    for layer in range(3):
        span = cones.vectors[layer]
        assert torch.allclose(span @ span.T, torch.eye(3).double(), atol=1e-9)
        for planted in (shared + own[0], shared + own[1], shared + own[2]):
            unit = torch.nn.functional.normalize(planted, dim=0)
            assert torch.linalg.vector_norm(span @ unit) > 0.99  # the span holds every kind's direction
    assert cosine(cones.vectors[1, 0], shared + own[0]) > 0.99  # the largest first


def test_beside_the_mean_difference_they_add_what_it_lacks() -> None:
    bad, good, shared, own = concepts((60, 40))
    difference = mean_difference(bad, good)
    cones = concept_cones(bad, good, difference[:, None], **USUAL)
    assert (cones.vectors @ difference[..., None]).abs().max() < 1e-9
    whole = torch.cat([difference[:, None], cones.vectors], dim=1)
    for planted in (shared + own[0], shared + own[1]):
        left = project_out(torch.nn.functional.normalize(planted, dim=0).expand(3, 24), whole)
        assert torch.linalg.vector_norm(left, dim=-1).max() < 0.1
    # what is left of two clusters points opposite ways: one direction, and the second would be noise
    assert cones.vectors.shape[1] == 1
    assert cones.drops[0] > 2 * cones.random_drop > 0 > cones.drops[1]


def test_a_direction_that_does_not_separate_held_out_prompts_is_told_from_one_that_does() -> None:
    useful, useless = units(2, 40)
    bad, good = noise(200, 2, 40, seed=1) + 3 * useful, noise(200, 2, 40, seed=2)
    both = torch.stack([useful, useless]).expand(2, 2, 40)
    drops, random_drop = held_out_drops(both, both, bad, good, torch.arange(200), torch.arange(200))
    assert drops[0] > 1 > random_drop >= 0
    assert drops[1] < 0.1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_size": 45}, "form no two clusters of 45"),
        ({"min_size": 60}, "100 bad prompts; two clusters of 60 need 120"),
        ({"min_silhouette": 0.99}, "do not fall into clusters: silhouette 0.* below 0.99"),
    ],
)
def test_reasons_not_to_cluster(changes, reason) -> None:
    bad, good, *_ = concepts((60, 40))
    with pytest.raises(NotApplicable, match=reason):
        concept_cones(bad, good, torch.zeros(3, 0, 24).double(), **{**USUAL, **changes})


def test_noise_does_not_fall_into_clusters() -> None:
    bad, good = noise(80, 2, 64, seed=1) + 0.3, noise(80, 2, 64, seed=2)
    with pytest.raises(NotApplicable, match=r"silhouette|no two clusters|random"):
        concept_cones(bad, good, mean_difference(bad, good)[:, None], **USUAL)


def test_fewer_clusters_are_tried_when_told_and_order_does_not_matter() -> None:
    bad, good, *_ = concepts((40, 40, 40))
    nothing = torch.zeros(3, 0, 24, dtype=torch.float64)
    assert concept_cones(bad, good, nothing, **{**USUAL, "most": 2}).clusters.count == 2
    one = concept_cones(bad, good, nothing, **USUAL)
    shuffle = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    other = concept_cones(bad[shuffle], good.flip(0), nothing, **USUAL)
    for a, b in zip(one.vectors, other.vectors, strict=True):
        assert (a.T @ a - b.T @ b).abs().max() < 1e-6  # the same span


def test_outliers_are_left_out_of_every_cluster() -> None:
    bad, good, *_ = concepts((60, 40))
    far = 30 * units(1, 24, seed=9)[0] + bad[:3]
    cones = concept_cones(torch.cat([bad, far]), good, torch.zeros(3, 0, 24).double(), **USUAL)
    assert (cones.clusters.labels[-3:] == -1).all()
    assert cones.clusters.count == 2
