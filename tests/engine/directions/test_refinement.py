"""Refinement on a stream that an edit really changes: it adds what is left, and ends for the reason it gives."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.directions.algebra import project_out
from bruno.engine.directions.find import DirectionSet, Samples, find_directions
from bruno.engine.directions.refinement import refine
from bruno.engine.events import Fallback
from bruno.settings.engine import Directions, EngineSettings
from tests.engine.directions.planted import cosine, noise, units

FIRST, BEHIND, THIRD = units(3, 30)


def samples(count: int = 4000) -> Samples:
    bad = (0.3 * noise(count, 4, 30, seed=1) + 5 * FIRST).float()
    return Samples(bad, (0.3 * noise(count, 4, 30, seed=2)).float())


def redundant(shown: float, sets: list[DirectionSet]):
    """A model that, once a direction is taken, shows the behaviour along one more that was silent before."""

    def capture_with_edit(directions: DirectionSet) -> tuple[torch.Tensor, torch.Tensor]:
        sets.append(directions)
        taken = samples()
        extra = shown * (BEHIND if directions.vectors.shape[1] == 1 else 0.4 * THIRD)
        bad, good = (
            project_out(sample.double().transpose(0, 1), directions.vectors).transpose(0, 1)
            for sample in (taken.bad + extra, taken.good)
        )
        return bad, good

    return capture_with_edit


def refined(shown: float = 2.0, cost: float = 0.1, emit=None, **changes) -> tuple[DirectionSet, list[DirectionSet]]:
    settings = Directions(**{"refinement_rounds": 2, "project_good_mean": False, **changes})
    found = find_directions(samples(), EngineSettings(directions=settings))
    sets: list[DirectionSet] = []
    result = refine(
        found, samples(), settings, capture_with_edit=redundant(shown, sets), kl_of=lambda _: cost, emit=emit
    )
    return result, sets


def test_each_round_adds_the_direction_that_is_left() -> None:
    result, sets = refined()
    assert result.vectors.shape[1] == 3
    for index, planted in enumerate((FIRST, BEHIND, THIRD)):
        assert (cosine(result.vectors[:, index], planted) > 0.99).all()
    assert result.weights.tolist() == [1, 1, 1]
    assert torch.allclose(result.vectors @ result.vectors.mT, torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert result.used == ("mean difference", "refinement (2 more, from 0.40, 0.16 of the classes' distance)")
    assert [s.vectors.shape[1] for s in sets] == [1, 2]  # every capture is under the edit so far


@pytest.mark.parametrize(
    ("changes", "rounds", "reason"),
    [
        ({"refinement_rounds": 0}, 0, None),
        ({"refinement_rounds": 1}, 1, None),
        ({"min_direction_magnitude": 0.2}, 1, "in round 2 only 0.16 of the classes' distance is left, below 0.2"),
        ({"min_direction_magnitude": 0.5}, 0, "in round 1 only 0.40 of the classes' distance is left, below 0.5"),
        ({"cost": 0.7}, 0, "round 1's edit costs a KL divergence of 0.7, more than 0.5"),
        ({"cost": 0.7, "max_kl_per_round": 0.8}, 2, None),
        ({"cost": float("nan")}, 0, "round 1's edit costs a KL divergence of nan, more than 0.5"),
    ],
)
def test_it_ends_as_the_settings_say_and_says_why(changes, rounds, reason) -> None:
    events: list = []
    result, _ = refined(emit=events.append, **changes)
    assert result.vectors.shape[1] == 1 + rounds
    assert [event.reason for event in events if isinstance(event, Fallback)] == ([reason] if reason else [])
    assert result.skipped.get("refinement", "").startswith(reason or "")
    assert any(word.startswith("refinement") for word in result.used) == bool(rounds)


def test_what_is_protected_is_not_added_and_compliance_stays_orthogonal() -> None:
    settings = Directions(refinement_rounds=1, project_good_mean=False)
    found = find_directions(samples(), EngineSettings(directions=settings))
    compliance = torch.nn.functional.normalize(BEHIND + THIRD, dim=0).float().expand(4, 30)
    given = DirectionSet(found.vectors, found.weights, found.used, compliance=compliance)
    result = refine(given, samples(), settings, capture_with_edit=redundant(2.0, []), kl_of=lambda _: 0.0)
    assert (cosine(result.compliance, THIRD) > 0.99).all()
    protected = DirectionSet(found.vectors, found.weights, found.used, protected=BEHIND.float().expand(4, 1, 30))
    result = refine(protected, samples(), settings, capture_with_edit=redundant(2.0, []), kl_of=lambda _: 0.0)
    assert result.vectors.shape[1] == 1
    assert "is left, below 0.1" in result.skipped["refinement"]
