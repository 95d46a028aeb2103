"""A supervised probe per layer: the normal of a logistic regression between what the model refuses and what it answers.

Pure on tensors; scikit-learn fits on the CPU, in the span of the samples, so that a wide model costs no more than its
prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bruno.engine.directions.algebra import normalise, stable_order
from bruno.engine.directions.record import NotApplicable

MIN_SAMPLES = 10
"""Fewest prompts a class."""
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """One linear probe a layer.

    Attributes:
        vectors: [L + 1, d] fp64, unit normals towards "refused"; zero where the samples of a layer are all the same.
        accuracy: [L + 1] fp64, balanced accuracy in stratified cross-validation, 0 to 1 (0.5 is chance); 0 there.
    """

    vectors: torch.Tensor
    accuracy: torch.Tensor


def supervised_probe(bad: torch.Tensor, good: torch.Tensor, refused: torch.Tensor) -> Probe:
    """Train a probe at every layer.

    Class 1 is the bad prompts that the model refuses, class 0 the good prompts and the bad ones that it answers. Inputs
    are standardised, classes balanced, the regression has scikit-learn's L2 penalty (C = 1).

    Args:
        bad, good: captures, [n, L + 1, d].
        refused: [n_bad] bool.

    Raises:
        NotApplicable: fewer than `MIN_SAMPLES` prompts in a class.
    """
    counts = int(refused.sum()), len(good) + int((~refused).sum())
    if min(counts) < MIN_SAMPLES:
        raise NotApplicable(f"{counts[0]} refused and {counts[1]} answered prompts; it needs {MIN_SAMPLES} of each")
    bad_order, good_order = stable_order(bad), stable_order(good)
    labels = np.concatenate([refused.to(bad.device)[bad_order].cpu().numpy(), np.zeros(len(good), bool)]).astype(int)
    fits = [
        _fit(torch.cat([bad[bad_order, layer], good[good_order, layer]]).double(), labels)
        for layer in range(bad.shape[1])
    ]
    return Probe(torch.stack([normal for normal, _ in fits]), torch.tensor([accuracy for _, accuracy in fits]).double())


def _fit(samples: torch.Tensor, labels: np.ndarray) -> tuple[torch.Tensor, float]:
    """Normal [d] and balanced accuracy of one layer, from samples [n, d] fp64.

    A score w . (x - mean) / scale has the normal w / scale in the space of x.
    """
    scale = samples.std(0, correction=0)
    varies = scale > 1e-9 * samples.abs().mean().clamp_min(1e-30)
    if not varies.any():
        return torch.zeros_like(scale), 0.0
    inverse = torch.where(varies, 1.0 / scale.clamp_min(1e-30), torch.zeros_like(scale))
    inputs = (samples - samples.mean(0)) * inverse
    features, back = _compact(inputs)
    rows = features.cpu().numpy()
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    rough, fine = (LogisticRegression(class_weight="balanced", max_iter=2000, tol=tol) for tol in (1e-4, 1e-6))
    accuracy = cross_val_score(rough, rows, labels, scoring="balanced_accuracy", cv=folds).mean()
    weights = back(torch.from_numpy(fine.fit(rows, labels).coef_[0]).to(inputs))
    return normalise(inverse * weights), float(accuracy)


def _compact(inputs: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Features with the inner products of the inputs Z [n, d] but at most n columns, and the way back to weights [d].

    The weights of an L2 regression lie in the span of its inputs: w = Z^T a. With Z Z^T = F F^T (Cholesky) the scores are
    F u with u = F^T a, and |u| = |w|: the fit on F has the same scores and the same penalty. Exact but for 1e-10 of the
    diagonal, which keeps the factorisation of centred inputs (whose rank is below n) defined.
    """
    size, hidden = inputs.shape
    if hidden <= size:
        return inputs, lambda weights: weights
    gram = inputs @ inputs.T
    gram.diagonal().add_(1e-10 * gram.diagonal().mean())
    factor = torch.linalg.cholesky(gram)
    return factor, lambda inside: inputs.T @ torch.linalg.solve_triangular(factor.T, inside[:, None], upper=True)[:, 0]


def ensemble(
    probe: torch.Tensor, other: torch.Tensor, accepted: torch.Tensor, *, weight_probe: float, weight_other: float
) -> torch.Tensor:
    """normalise(weight_probe * probe + weight_other * other) at accepted layers, the other direction elsewhere.

    Args:
        probe, other: unit directions [L + 1, d], with agreeing signs.
        accepted: [L + 1] bool.
    """
    mixed = normalise(weight_probe * probe + weight_other * other)
    return torch.where(accepted[:, None], mixed, other)
