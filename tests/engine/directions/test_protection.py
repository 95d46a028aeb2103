"""Protection: exact, in order, and an error where too little would be left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.directions.protection import FLOOR, check_overlap, protect, sacred_directions
from bruno.errors import InputError
from tests.engine.directions.planted import cosine, noise, units


@settings(deadline=None, max_examples=50)
@given(
    k=st.integers(1, 4),
    s=st.integers(0, 4),
    hidden=st.integers(12, 40),
    helpful=st.booleans(),
    good=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_protected_is_gone_from_every_direction(k, s, hidden, helpful, good, seed) -> None:
    vectors = 10 * noise(3, k, hidden, seed=seed)
    protected = noise(3, 2 + s, hidden, seed=seed + 1) * 100
    shielded = protect(
        vectors,
        helpful=protected[:, 0] if helpful else None,
        good_mean=protected[:, 1] if good else None,
        sacred=protected[:, 2:] if s else None,
    )
    chosen = [i for i, there in enumerate([helpful, good] + [True] * s) if there]
    result = shielded.vectors.float().double()
    for i in chosen:
        assert cosine(result, protected[:, i : i + 1]).abs().max() < 1e-6
    assert torch.allclose(shielded.vectors @ shielded.vectors.mT, torch.eye(k).double().expand(3, k, k), atol=1e-9)
    assert shielded.span.shape == (3, len(chosen), hidden)
    assert (shielded.overlap >= 0).all()
    assert (shielded.overlap <= 1 + 1e-9).all()


def test_nothing_protected_changes_nothing() -> None:
    vectors = units(2, 8).expand(2, 2, 8)
    assert torch.allclose(protect(vectors).vectors, vectors)


def test_the_order_helpfulness_and_good_mean_before_the_sacred_overlap_is_measured() -> None:
    a, b, c = units(3, 10)
    direction = torch.nn.functional.normalize(a + b + c, dim=0).expand(2, 1, 10)
    sacred = torch.nn.functional.normalize(a + 0.2 * b, dim=0).expand(2, 1, 10)
    alone = protect(direction, sacred=sacred).overlap[0, 0]
    after = protect(direction, helpful=a.expand(2, 10), sacred=sacred).overlap[0, 0]
    assert alone == pytest.approx(1.2 / (3 * 1.04) ** 0.5)
    assert after == pytest.approx(0.2 / (2 * 1.04) ** 0.5)  # a has left the direction by then: (b + c) . sacred
    assert protect(direction, good_mean=a.expand(2, 10), sacred=sacred).overlap[0, 0] == pytest.approx(float(after))


def test_a_later_step_does_not_put_back_an_earlier_one() -> None:
    helpful, other = units(2, 8)
    good_mean = helpful + other  # not orthogonal to helpfulness
    result = protect(noise(2, 1, 8), helpful=helpful.expand(2, 8), good_mean=good_mean.expand(2, 8)).vectors
    assert cosine(result, helpful).abs().max() < 1e-9
    assert cosine(result, good_mean).abs().max() < 1e-9


def test_a_zero_protection_removes_nothing() -> None:
    vectors = units(1, 8).expand(3, 1, 8)
    assert torch.allclose(protect(vectors, good_mean=torch.zeros(3, 8)).vectors, vectors)


def test_a_direction_inside_what_is_protected_becomes_zero_and_not_noise() -> None:
    a, b = units(2, 8)
    shielded = protect(torch.stack([a, b]).expand(2, 2, 8), good_mean=a.expand(2, 8))
    assert not shielded.vectors[:, 0].any()
    assert torch.allclose(shielded.vectors[:, 1], b.expand(2, 8))


def leaning(overlap: float) -> torch.Tensor:
    a, b = units(2, 8)
    return (overlap * a + (1 - overlap**2) ** 0.5 * b).expand(3, 1, 8)


def test_overlap_above_the_threshold_stops_unless_it_is_allowed() -> None:
    sacred = units(2, 8)[:1].expand(3, 1, 8)
    some = protect(leaning(0.5), sacred=sacred)
    assert some.overlap[1:].flatten().tolist() == pytest.approx([0.5, 0.5])
    assert check_overlap(some, threshold=0.6, allow=False) == ""
    with pytest.raises(InputError, match=r"overlaps with the sacred ones by 0.50 \(more than 0.3 at blocks 0-1\)"):
        check_overlap(some, threshold=0.3, allow=False)
    assert "costs capability" in check_overlap(some, threshold=0.3, allow=True)


def test_below_the_floor_it_is_an_error_always() -> None:
    sacred = units(2, 8)[:1].expand(3, 1, 8)
    enough, little = (protect(leaning((1 - left**2) ** 0.5), sacred=sacred) for left in (FLOOR * 1.1, FLOOR * 0.9))
    check_overlap(enough, threshold=1.0, allow=True)
    with pytest.raises(InputError, match="leave less than 10%"):
        check_overlap(little, threshold=1.0, allow=True)


def test_the_embedding_which_is_not_edited_stops_nothing() -> None:
    vectors = leaning(0.999).clone()
    vectors[1:] = leaning(0.0)[1:]
    assert check_overlap(protect(vectors, sacred=units(2, 8)[:1].expand(3, 1, 8)), threshold=0.1, allow=False) == ""


def test_sacred_directions_are_what_sets_capability_apart() -> None:
    planted = units(2, 20)
    capability = noise(2000, 2, 20, seed=1) + 5 * planted[0] + 3 * noise(2000, 2, 1, seed=2) * planted[1]
    sacred = sacred_directions(capability, noise(2000, 2, 20, seed=3), 2)
    for direction in planted:
        assert (torch.linalg.vector_norm(sacred @ direction, dim=-1) > 0.99).all()
    assert torch.allclose(sacred @ sacred.mT, torch.eye(2).double().expand(2, 2, 2), atol=1e-9)
