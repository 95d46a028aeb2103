"""A supervised probe per layer: the normal of a logistic regression between what the model refuses and what it answers.

Pure on tensors; the fit is in the span of the samples, so that a wide model costs no more than its prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bruno.engine.directions.algebra import layer_of, normalise, stable_order
from bruno.engine.directions.logistic import Regression
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


def supervised_probe(
    bad: torch.Tensor, good: torch.Tensor, refused: torch.Tensor, *, device: torch.device | None = None
) -> Probe:
    """Train a probe at every layer.

    Class 1 is the bad prompts that the model refuses, class 0 the good prompts and the bad ones that it answers. Inputs
    are standardised, classes balanced, the regression has an L2 penalty (scikit-learn's, C = 1).

    Args:
        bad, good: captures, [n, L + 1, d].
        refused: [n_bad] bool.
        device: where to compute, and where the result is; the captures' own without one.

    Raises:
        NotApplicable: fewer than `MIN_SAMPLES` prompts in a class.
    """
    counts = int(refused.sum()), len(good) + int((~refused).sum())
    if min(counts) < MIN_SAMPLES:
        raise NotApplicable(f"{counts[0]} refused and {counts[1]} answered prompts; it needs {MIN_SAMPLES} of each")
    device = device or bad.device
    bad_order, good_order = stable_order(bad, device), stable_order(good, device)
    answered = torch.zeros(len(good), dtype=torch.float64, device=device)
    labels = torch.cat([refused.to(device)[bad_order].double(), answered])
    weights = _weights(labels)
    fits = [
        _fit(torch.cat([layer_of(bad, i, device)[bad_order], layer_of(good, i, device)[good_order]]), labels, weights)
        for i in range(bad.shape[1])
    ]
    return Probe(*(torch.stack(part) for part in zip(*fits, strict=True)))


def _weights(labels: torch.Tensor) -> torch.Tensor:
    """Balanced weights of the samples, [1 + FOLDS, n]: all of them, then those that each fold trains on (0: held out)."""
    from sklearn.model_selection import StratifiedKFold

    known = labels.cpu().numpy()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    taking_part = torch.ones(1 + FOLDS, len(known), dtype=torch.float64)
    for row, (_, held) in enumerate(folds.split(np.zeros_like(known), known), 1):
        taking_part[row, held] = 0
    taking_part = taking_part.to(labels.device)
    count, balanced = taking_part.sum(-1, keepdim=True), torch.zeros_like(taking_part)
    for value in (0, 1):
        part = taking_part * (labels == value)
        balanced += count / (2 * part.sum(-1, keepdim=True)) * part
    return balanced


def _fit(samples: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal [d] and balanced accuracy [] of one layer, from samples [n, d] fp64.

    A score w . (x - mean) / scale has the normal w / scale in the space of x.
    """
    scale = samples.std(0, correction=0)
    varies = scale > 1e-9 * samples.abs().mean().clamp_min(1e-30)
    if not varies.any():
        return torch.zeros_like(scale), torch.zeros_like(scale[0])
    inverse = torch.where(varies, 1.0 / scale.clamp_min(1e-30), torch.zeros_like(scale))
    inputs = (samples - samples.mean(0)) * inverse
    regression = Regression(inputs, labels)
    normal, scores = regression.fit(weights[:1])
    _, held_out = regression.fit(weights[1:], start=scores[0])
    right = (weights[1:] == 0) & ((held_out > 0) == (labels == 1))  # [FOLDS, n]
    held = weights[1:] == 0
    recalls = [(right & (labels == value)).sum(-1) / (held & (labels == value)).sum(-1).double() for value in (0, 1)]
    return normalise(inverse * normal[0]), ((recalls[0] + recalls[1]) / 2).mean()


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
