"""Contrastive PCA: exact against the dense matrix, finds a shift inside loud nuisance, and the trap it must not fall in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.directions import contrastive, spectrum
from bruno.engine.directions.algebra import aligned, mean_difference
from bruno.engine.directions.contrastive import contrastive_pca, direction_weights
from bruno.engine.directions.record import NotApplicable
from bruno.engine.directions.spectrum import decompose, filtered, top_eigenvectors
from tests.engine.directions.planted import cosine, noise, units


def nuisance_and_shift(count: int = 8000, hidden: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four dimensions of standard deviation 4 in both classes, and a shift of 3 that lies half inside them."""
    loud = units(4, hidden)
    shift = torch.nn.functional.normalize(loud[0] + units(6, hidden)[5], dim=0)
    classes = [noise(count, 3, hidden, seed=s) + 4 * noise(count, 3, 4, seed=s + 1) @ loud for s in (10, 20)]
    return classes[0] + 3 * shift, classes[1], shift


@settings(deadline=None, max_examples=40)
@given(
    bad=st.integers(2, 25),
    good=st.integers(2, 25),
    hidden=st.integers(2, 40),
    copies=st.booleans(),
    alpha=st.floats(0.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_dense_decomposition(bad, good, hidden, copies, alpha, seed) -> None:
    samples = noise(2, bad + good, hidden, seed=seed)
    if copies:  # a rank below the count of samples
        samples[:, 1] = samples[:, 0]
    share = torch.cat([torch.full((bad,), 1 / bad), torch.full((good,), -alpha / good)]).double()
    count = min(3, hidden)
    values, vectors, _ = top_eigenvectors(samples, share, count)
    dense = (samples.mT * share) @ samples
    expected = torch.linalg.eigvalsh(dense).flip(-1)[:, : values.shape[1]]
    scale = torch.linalg.matrix_norm(dense, 2)[:, None]
    positive = expected > 1e-6 * scale  # where there are fewer samples than dimensions, zeros are not looked for
    assert torch.where(positive, (values - expected).abs() / scale, 0.0).max() < 1e-9
    residual = torch.linalg.vector_norm(vectors @ dense - values[..., None] * vectors, dim=-1) / scale
    assert torch.where(positive, residual, 0.0).max() < 1e-6
    gram = (vectors @ vectors.mT)[positive[..., None] & positive[:, None]]
    identity = torch.eye(values.shape[1], dtype=torch.float64).expand(2, -1, -1)[
        positive[..., None] & positive[:, None]
    ]
    assert (gram - identity).abs().max() < 1e-9 if len(gram) else True


def sines(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of the angles between unit vectors, whatever their signs; exact where a cosine rounds to 1."""
    return torch.linalg.vector_norm(found - (found * expected).sum(-1, keepdim=True) * expected, dim=-1)


def scaled_samples(
    size: int, hidden: int, decay: float, *, rank: int = 0, shift: float = 0.5, alpha: float = 1.0, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers of samples whose scales fall off as a model's do, half of them shifted, and their shares."""
    scale = torch.arange(1, hidden + 1).double().pow(-decay)
    samples = noise(2, size, hidden, seed=seed) * scale
    samples[:, : size // 2] += shift * noise(hidden, seed=seed + 1) * scale
    if rank:
        samples[:, rank:] = samples[:, : size - rank]
    good = size - size // 2
    return samples, torch.cat([torch.full((size // 2,), 2 / size), torch.full((good,), -alpha / good)]).double()


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(60, 160),
    hidden=st.integers(60, 160),
    decay=st.floats(0.0, 2.0),
    shift=st.floats(0.0, 20.0),
    alpha=st.floats(0.0, 3.0),
    copies=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_iterating_gives_what_decomposing_gives(size, hidden, decay, shift, alpha, copies, seed) -> None:
    rank = size // 2 + 5 if copies else 0
    samples, share = scaled_samples(size, hidden, decay, rank=rank, shift=shift, alpha=alpha, seed=seed)
    iterated, exact = filtered(samples, share, 3), decompose(samples, share, 4)
    gaps = -exact.values.diff(dim=-1)  # [2, 3]
    apart = torch.minimum(gaps, torch.cat([gaps[:, :1], gaps[:, :-1]], dim=-1)) > 3e-3 * exact.values[:, :1]
    apart &= exact.values[:, :3] > 3e-3 * exact.values[:, :1]
    apart &= iterated.settled[:, None]
    assert iterated.settled.all() or alpha > 1.2  # where the good prompts rule, the decomposition may have to step in
    assert torch.where(apart, (iterated.values - exact.values[:, :3]).abs() / exact.values[:, :1], 0.0).max() < 1e-9
    assert torch.where(apart, sines(iterated.vectors, exact.vectors[:, :3]), 0.0).max() < 1e-6


@pytest.mark.parametrize(("decay", "rank", "hidden"), [(1.0, 0, 560), (1.0, 300, 560), (0.0, 0, 560), (0.3, 0, 500)])
def test_iterating_converges_for_steep_spectra_flat_ones_and_few_ranks(decay: float, rank: int, hidden: int) -> None:
    samples, share = scaled_samples(520, hidden, decay, rank=rank)
    iterated, exact = filtered(samples, share, 3), decompose(samples, share, 3)
    assert iterated.settled.all()
    assert torch.allclose(iterated.values, exact.values, rtol=1e-9)
    assert sines(iterated.vectors, exact.vectors).max() < 1e-6
    gram = iterated.vectors @ iterated.vectors.mT
    assert (gram - torch.eye(3)).abs().max() < 1e-9


def test_a_layer_of_nothing_and_one_of_one_direction_settle_too() -> None:
    samples, share = scaled_samples(300, 400, 1.0)
    samples[0] = 0
    samples[1] = torch.arange(300, 0, -1)[:, None] * units(1, 400)
    found = filtered(samples, share, 3)
    assert found.settled.all()
    assert not found.vectors[0].any()
    assert (cosine(found.vectors[1, 0], units(1, 400)[0]).abs() > 1 - 1e-12).all()


def test_where_iterating_does_not_converge_the_decomposition_steps_in_and_is_named(monkeypatch) -> None:
    samples, share = scaled_samples(520, 560, 0.5)
    monkeypatch.setattr(spectrum, "_LARGE", 100)
    assert top_eigenvectors(samples, share, 3).settled.all()
    monkeypatch.setattr(spectrum, "_ROUNDS", 3)
    monkeypatch.setattr(spectrum, "_TOLERANCE", 0.0)
    found, exact = top_eigenvectors(samples, share, 3), decompose(samples, share, 3)
    assert not found.settled.any()
    assert torch.allclose(found.values, exact.values)
    assert sines(found.vectors, exact.vectors).max() < 1e-12
    bad, good = samples[:, :260].transpose(0, 1).float(), samples[:, 260:].transpose(0, 1).float()
    assert contrastive_pca(bad, good, 3).unsettled == 2


def test_some_layers_at_a_time_give_what_all_at_once_give(monkeypatch) -> None:
    bad, good = noise(30, 5, 50, seed=1) + 1, noise(30, 5, 50, seed=2)
    whole = contrastive_pca(bad, good, 3)
    monkeypatch.setattr(contrastive, "_CHUNK_BYTES", 2 * 8 * (60 * 50 + 2 * 50 * 50))
    assert torch.allclose(contrastive_pca(bad, good, 3).eigenvalues, whole.eigenvalues)
    assert sines(contrastive_pca(bad, good, 3).vectors, whole.vectors).max() < 1e-9


def test_a_shift_inside_loud_directions_is_found_with_its_sign() -> None:
    bad, good, shift = nuisance_and_shift()
    spectrum = contrastive_pca(bad, good, 3)
    first = aligned(spectrum.vectors[:, :1], mean_difference(bad, good))[:, 0]
    assert (cosine(first, shift) > 0.99).all()
    assert (spectrum.eigenvalues.diff(dim=-1) <= 0).all()


def test_the_trap_centred_per_class_the_behaviour_is_gone() -> None:
    bad, good, shift = nuisance_and_shift()
    centred = contrastive_pca(bad - bad.mean(0) + good.mean(0), good, 1)  # what centring per class amounts to
    assert (cosine(centred.vectors[:, 0], shift).abs() < 0.9).all()


def test_alpha_is_the_weight_of_the_good_spread() -> None:
    bad, good, shift = nuisance_and_shift()
    plain = contrastive_pca(bad, good, 1, alpha=0.0)
    assert (cosine(plain.vectors[:, 0], shift).abs() < 0.97).all()  # the loud directions win
    assert (cosine(contrastive_pca(bad, good, 1, alpha=1.0).vectors[:, 0], shift).abs() > 0.99).all()


def test_a_direction_in_which_only_the_bad_prompts_spread_comes_second() -> None:
    shift, wide = units(2, 20)
    bad = noise(3000, 2, 20, seed=1) + 4 * shift + 2 * noise(3000, 2, 1, seed=2) * wide
    spectrum = contrastive_pca(bad, noise(3000, 2, 20, seed=3), 2)
    assert (cosine(spectrum.vectors[:, 0], shift).abs() > 0.99).all()
    assert (cosine(spectrum.vectors[:, 1], wide).abs() > 0.99).all()
    assert torch.allclose(spectrum.eigenvalues[1], torch.tensor([16.0, 4.0]).double(), rtol=0.1)


def test_the_order_of_prompts_changes_nothing() -> None:
    bad, good = noise(30, 3, 50, seed=1) + 1, noise(30, 3, 50, seed=2)
    one, other = contrastive_pca(bad, good, 3), contrastive_pca(bad.flip(0), good[torch.randperm(30)], 3)
    signs = (one.vectors * other.vectors).sum(-1, keepdim=True).sign()
    assert (one.vectors - signs * other.vectors).abs().max() < 1e-8


def test_where_the_bad_prompts_spread_less_there_is_nothing() -> None:
    bad, good = 0.1 * noise(40, 3, 8), noise(40, 3, 8, seed=1)
    good = good - good.mean(0)
    with pytest.raises(NotApplicable, match="spread more than 1 times"):
        contrastive_pca(bad, good, 2)
    loud = torch.cat([bad[:, :2], 3 * bad[:, 2:] + 5], dim=1)
    spectrum = contrastive_pca(loud, good, 2)
    assert not spectrum.vectors[:2].any()
    assert spectrum.vectors[2].any()


def test_samples_that_are_all_the_same_have_no_direction() -> None:
    bad, good = noise(10, 3, 8) + 2, noise(10, 3, 8, seed=1)
    bad[:, 0] = good[:, 0] = 1e3 * good[0, 0]
    assert not contrastive_pca(bad, good, 2).vectors[0].any()


def test_weights_are_shares_of_eigenvalues_or_their_softmax() -> None:
    values = torch.tensor([[9.0, 9.0, 9.0], [4.0, 2.0, 0.0], [40.0, 20.0, 20.0], [0.0, 0.0, 0.0]]).double()
    shares = direction_weights(values, "eigenvalues")  # the embedding and the empty block do not count
    mean = (torch.tensor([4.0, 2.0, 0.0]) / 6 + torch.tensor([40.0, 20.0, 20.0]) / 80) / 2
    assert torch.allclose(shares, (mean / mean[0]).double())
    softmax = direction_weights(values[:2], "softmax")
    standard = torch.tensor([2.0, 0.0, -2.0]).double() / (8 / 3) ** 0.5
    assert torch.allclose(softmax, (standard - standard[0]).exp())
    assert direction_weights(values[:2, :1], "softmax").tolist() == [1.0]
