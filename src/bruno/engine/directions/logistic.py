"""Logistic regression with an L2 penalty by Newton's method, for several weightings of the samples at once. Pure, fp64.

The weights of such a regression lie in the span of its inputs, u = Z^T a, so a fit of n samples in d dimensions has only
min(n, d) unknowns. A dozen Cholesky factorisations of that size find them, each quick on an accelerator, in place of
hundreds of passes over the samples.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import softplus

# The fit has ended when no sample's score moves by more than this.
_TOLERANCE = 1e-7
_STEPS, _HALVINGS = 50, 20


class Regression:
    """Minimises sum_i weights_i log(1 + exp(-(2 t_i - 1) f_i)) + |u|^2 / 2 with f = Z u + b, b free.

    This is scikit-learn's LogisticRegression with C = 1 and these sample weights; a weight of 0 leaves a sample out.

    Args:
        inputs: Z, [n, d].
        labels: t, [n], 0 or 1.

    Source: for fewer samples than dimensions Rasmussen and Williams 2006, Gaussian Processes for Machine Learning,
    algorithm 3.1 (B is well-conditioned however certain the fit is); the intercept by elimination.
    """

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._inputs, self._labels = inputs, labels
        self._kernel = inputs @ inputs.T if len(inputs) < inputs.shape[1] else None

    def fit(self, weights: torch.Tensor, start: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights u [m, d], and the scores f [m, n] of every sample, those left out included.

        Args:
            weights: [m, n], one fit for each row, each with weight on both classes.
            start: scores [n] to begin from, those of a fit that is like these; 0 without.
        """
        running = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
        scores = torch.zeros_like(weights)
        inner = weights.new_zeros(
            len(weights), len(self._inputs) if self._kernel is not None else self._inputs.shape[1]
        )
        if start is not None:
            inner, scores = self._newton(inner, start.expand_as(weights), weights, running)
        loss = self._loss(inner, scores, weights)
        for _ in range(_STEPS):
            new, step = self._newton(inner, scores, weights, running), torch.ones_like(weights[:, :1])
            for _ in range(_HALVINGS):
                tried = torch.lerp(inner, new[0], step), torch.lerp(scores, new[1], step)
                tried_loss = self._loss(*tried, weights)
                worse = running & ~(tried_loss <= loss * (1 + 1e-12))
                if not worse.any():
                    break
                step[worse] /= 2
            moved = (tried[1] - scores).abs().amax(-1)
            inner = torch.where(running[:, None], tried[0], inner)
            scores = torch.where(running[:, None], tried[1], scores)
            loss = torch.where(running, tried_loss, loss)
            running = running & (moved > _TOLERANCE)
            if not running.any():
                break
        return (inner if self._kernel is None else inner @ self._inputs), scores

    def _loss(self, inner: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The objective, [m]; of `inner` a the penalty is a^T K a = a . f, because every iterate has sum(a) = 0."""
        penalty = (inner * (inner if self._kernel is None else scores)).sum(-1) / 2
        return (weights * softplus((1 - 2 * self._labels) * scores)).sum(-1) + penalty

    def _newton(
        self, inner: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor, running: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The minimum of the objective's quadratic model at these scores, as (u or a, scores), for the running fits.

        With g and W the loss' gradient and curvature in f, it solves (Z^T W Z + I) u + Z^T W 1 b = Z^T (W f - g), or
        (I + W K) a + W 1 b = W f - g with sum(a) = 0.
        """
        chance = scores.sigmoid()
        curvature = weights * chance * (1 - chance)
        right = curvature * scores - weights * (chance - self._labels)
        solve = self._in_dimensions if self._kernel is None else partial(self._in_samples, self._kernel)
        inner, intercept = inner.clone(), torch.zeros_like(weights[:, :1])
        for fit in running.nonzero()[
            :, 0
        ].tolist():  # not as a batch: accelerators' batched ones are for small matrices
            inner[fit], intercept[fit] = solve(curvature[fit], right[fit])
        return inner, (inner @ (self._inputs.T if self._kernel is None else self._kernel)) + intercept

    def _in_samples(
        self, kernel: torch.Tensor, curvature: torch.Tensor, right: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With B = I + W^(1/2) K W^(1/2), (I + W K)^(-1) = I - W^(1/2) B^(-1) W^(1/2) K."""
        root = curvature.sqrt()
        matrix = kernel * root * root[:, None]
        matrix.diagonal().add_(1.0)
        sides = torch.stack([root * (kernel @ right), root], dim=1)  # [n, 2]
        solved = torch.cholesky_solve(sides, torch.linalg.cholesky_ex(matrix).L) * root[:, None]
        base, by_intercept = right - solved[:, 0], solved[:, 1]
        intercept = base.sum() / by_intercept.sum()
        return base - intercept * by_intercept, intercept

    def _in_dimensions(self, curvature: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sides = self._inputs.T @ torch.stack([right, curvature], dim=1)  # [d, 2]
        matrix = (self._inputs.T * curvature) @ self._inputs
        matrix.diagonal().add_(1.0)
        base, by_intercept = torch.cholesky_solve(sides, torch.linalg.cholesky_ex(matrix).L).unbind(1)
        intercept = (right.sum() - sides[:, 1] @ base) / (curvature.sum() - sides[:, 1] @ by_intercept)
        return base - intercept * by_intercept, intercept
