"""The probe finds the discriminant, maps it back through the standardisation, and knows when it is no good."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.directions.algebra import stable_order
from bruno.engine.directions.probe import ensemble, supervised_probe
from bruno.engine.directions.record import NotApplicable
from tests.engine.directions.planted import cosine, noise, units


def test_under_anisotropic_noise_it_is_the_discriminant_and_not_the_mean_difference() -> None:
    scale = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0, 1.0]).double()
    shift = 0.5 * torch.tensor([0.5, 1.0, -1.0, 1.0, 3.0, 0.0]).double()
    bad, good = (3 + noise(6000, 2, 6, seed=s) * scale for s in (1, 2))
    probe = supervised_probe(bad + shift, good, torch.ones(6000, dtype=torch.bool))
    discriminant = shift / scale.square()  # Sigma^-1 delta, the normal of the best plane between two normal classes
    assert (cosine(probe.vectors, discriminant) > 0.99).all()
    assert (cosine(probe.vectors, shift) < 0.5).all()


def test_in_the_span_of_few_samples_it_equals_the_fit_in_all_dimensions() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    bad, good = noise(30, 1, 200, seed=1) * (1 + noise(200, seed=3).abs()) + 0.3, noise(40, 1, 200, seed=2)
    probe = supervised_probe(bad, good, torch.ones(30, dtype=torch.bool))
    x = torch.cat([bad, good])[:, 0].numpy()
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-8)
    model.fit(scaler.transform(x), [1] * 30 + [0] * 40)
    direct = torch.from_numpy(model.coef_[0] / scaler.scale_)
    assert cosine(probe.vectors[0], direct) > 0.9999


@settings(deadline=None, max_examples=12)
@given(
    bad=st.integers(12, 40),
    good=st.integers(12, 40),
    hidden=st.sampled_from([3, 20, 150]),
    shift=st.floats(0.0, 2.0),
    seed=st.integers(0, 1000),
)
def test_it_equals_scikit_learns_fit_and_its_cross_validation(bad, good, hidden, shift, seed) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.preprocessing import StandardScaler

    scale = 1 + noise(hidden, seed=seed + 1).abs()
    one, other = noise(bad, 1, hidden, seed=seed) * scale + shift, noise(good, 1, hidden, seed=seed + 2) * scale
    probe = supervised_probe(one, other, torch.ones(bad, dtype=torch.bool))
    rows = torch.cat([sample[stable_order(sample)] for sample in (one, other)])[:, 0].numpy()
    labels = [1] * bad + [0] * good
    scaler = StandardScaler().fit(rows)
    model = LogisticRegression(class_weight="balanced", max_iter=10000, tol=1e-10)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(model, scaler.transform(rows), labels, scoring="balanced_accuracy", cv=folds).mean()
    assert probe.accuracy[0].item() == pytest.approx(accuracy, abs=1e-12)
    normal = torch.from_numpy(model.fit(scaler.transform(rows), labels).coef_[0] / scaler.scale_)
    assert (probe.vectors[0] - torch.nn.functional.normalize(normal, dim=0)).norm() < 1e-5


def test_answered_bad_prompts_belong_to_the_other_class() -> None:
    harm, refusal = units(2, 12)
    refused = torch.arange(400) < 200
    bad = noise(400, 1, 12, seed=1) + 8 * harm + 4 * refused[:, None, None] * refusal
    probe = supervised_probe(bad, noise(400, 1, 12, seed=2), refused)
    assert cosine(probe.vectors[0], refusal) > 0.95
    assert cosine(probe.vectors[0], harm) < 0.3
    assert probe.accuracy[0] > 0.9


def test_accuracy_without_a_difference_is_chance_and_the_order_of_prompts_changes_nothing() -> None:
    bad, good = noise(60, 2, 30, seed=1), noise(60, 2, 30, seed=2)
    bad[:, 1] += 2
    refused = torch.arange(60) % 3 > 0
    bad[~refused, 1] -= 2
    probe = supervised_probe(bad, good, refused)
    assert 0.3 < probe.accuracy[0] < 0.62
    assert probe.accuracy[1] > 0.9
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    other = supervised_probe(bad[shuffle], good.flip(0), refused[shuffle])
    assert torch.equal(probe.accuracy, other.accuracy)
    assert (probe.vectors - other.vectors).abs().max() < 1e-5


def test_a_layer_where_all_prompts_are_the_same_has_no_probe() -> None:
    bad, good = noise(20, 2, 8, seed=1) + 2, noise(20, 2, 8, seed=2)
    bad[:, 0] = good[:, 0] = good[0, 0]
    bad[:, 1, 3] = good[:, 1, 3] = 7.0  # a dimension that never changes
    probe = supervised_probe(bad, good, torch.ones(20, dtype=torch.bool))
    assert not probe.vectors[0].any()
    assert probe.accuracy[0] == 0
    assert probe.vectors[1, 3] == 0


@pytest.mark.parametrize(("refused", "good"), [(9, 50), (50, 9)])
def test_fewer_than_ten_samples_a_class_are_named(refused: int, good: int) -> None:
    bad = noise(50, 1, 4)
    if good == 9:  # all bad ones are refused
        refused = 50
    with pytest.raises(NotApplicable, match=f"{refused} refused and .* it needs 10 of each"):
        supervised_probe(bad, noise(good, 1, 4), torch.arange(50) < refused)


def test_the_ensemble_mixes_where_the_probe_is_accepted() -> None:
    probe, other = units(2, 6)[:, None].expand(2, 3, 6)
    mixed = ensemble(probe, other, torch.tensor([True, False, True]), weight_probe=0.6, weight_other=0.8)
    assert torch.allclose(mixed[0], 0.6 * probe[0] + 0.8 * other[0])
    assert torch.equal(mixed[1], other[1])
