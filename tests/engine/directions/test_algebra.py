"""The algebra under every extraction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.directions.algebra import aligned, orthonormal, project_out, separation, stable_order, winsorise
from bruno.engine.directions.record import block_list


@settings(deadline=None, max_examples=40)
@given(
    k=st.integers(0, 5), m=st.integers(0, 5), hidden=st.integers(5, 20), zero=st.booleans(), seed=st.integers(0, 999)
)
def test_projecting_out_a_span_that_may_be_empty_zero_or_repeated(k, m, hidden, zero, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, span = (torch.randn(3, count, hidden, generator=generator) for count in (k, m))
    if m and zero:
        span[:, -1] = 0
    elif m > 1:
        span[:, -1] = 3 * span[:, 0]
    left = project_out(vectors, span)
    assert left.shape == vectors.shape
    assert not left.numel() or not m or (left @ span.double().mT).abs().max() < 1e-5  # repeated up to fp32
    if m == 0 or (m == 1 and zero):  # a zero vector spans nothing; a QR factorisation would take one out for it
        assert torch.allclose(left, vectors.double())


def test_gram_schmidt_keeps_order_and_sign_and_drops_what_is_not_new() -> None:
    first, second = torch.randn(2, 2, 8)
    basis = orthonormal(torch.stack([-first, torch.zeros(2, 8), first + 1e-9, second], dim=1), floor=1e-3)
    assert torch.allclose(basis[:, 0], -torch.nn.functional.normalize(first, dim=-1).double())
    assert not basis[:, 1:3].any()
    assert ((basis[:, 3] * second).sum(-1) > 0).all()
    assert (basis[:, 3] * basis[:, 0]).sum(-1).abs().max() < 1e-12


def test_aligned_turns_what_points_away() -> None:
    reference = torch.tensor([[1.0, 0.0]])
    vectors = torch.tensor([[[-1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]])
    assert aligned(vectors, reference).tolist() == [[[1.0, -2.0], [3.0, -1.0], [0.0, 1.0]]]


def test_the_stable_order_does_not_depend_on_the_given_one() -> None:
    sample = torch.randn(20, 3, 8)
    shuffle = torch.randperm(20)
    assert torch.equal(sample[stable_order(sample)], sample[shuffle][stable_order(sample[shuffle])])


@pytest.mark.parametrize(
    ("indices", "text"),
    [([3], "block 3"), ([0, 1, 2, 7], "blocks 0-2, 7"), ([1, 3], "blocks 1, 3"), ([4, 5], "blocks 4-5")],
)
def test_blocks_are_named_in_ranges(indices, text) -> None:
    assert block_list(indices) == text


def test_project_out_removes_a_whole_span() -> None:
    vectors, span = torch.randn(4, 32), torch.randn(4, 3, 32)
    left = project_out(vectors, span)
    assert (left[:, None] * span.double()).sum(-1).abs().max() < 1e-10


def test_winsorising_clamps_outliers_of_each_vector_and_only_them() -> None:
    vectors = torch.cat([torch.linspace(-1, 1, 99), torch.tensor([50.0])]).expand(2, 100)
    clamped = winsorise(vectors, 0.99)
    assert clamped[0, -1] == 1.0
    assert torch.equal(clamped[:, :-1], vectors[:, :-1])
    assert winsorise(vectors, 1.0) is vectors


def test_separation_is_the_distance_of_means_in_standard_deviations() -> None:
    bad, good = torch.randn(4000, 1, 2), torch.randn(4000, 1, 2)
    bad[..., 0] += 3
    assert separation(bad, good, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(3, rel=0.05)
