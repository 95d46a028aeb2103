"""Contrastive PCA about the good mean: directions in which the bad prompts spread more than the good ones. Pure.

    C = E_bad[(x - m)(x - m)^T] - alpha E_good[(x - m)(x - m)^T],    m = E_good[x]

Second moments about the *good* mean for both classes, so that the shift of the means, which is most of a behaviour, is
in C. Centred per class (as the method is usually written) C loses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bruno.engine.directions.algebra import layer_of
from bruno.engine.directions.record import NotApplicable
from bruno.engine.directions.spectrum import top_eigenvectors

# Layers are worked on together as far as their fp64 samples and matrices fit here.
_CHUNK_BYTES = 2**30
# An eigenvalue below this share of the good prompts' squared length is rounding.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """The top of contrastive PCA, per layer.

    Attributes:
        vectors: [L + 1, k, d] fp64, orthonormal over k; zero where the eigenvalue is not positive. Signs are arbitrary.
        eigenvalues: [L + 1, k] fp64, descending, at least 0: how much more the bad prompts spread along each.
        unsettled: layers whose iteration did not converge, so that they were decomposed whole; as exact, and slow.
    """

    vectors: torch.Tensor
    eigenvalues: torch.Tensor
    unsettled: int = 0


def contrastive_pca(
    bad: torch.Tensor, good: torch.Tensor, count: int, alpha: float = 1.0, *, device: torch.device | None = None
) -> Spectrum:
    """The `count` top eigenvectors of C at every layer; fewer where the samples span less.

    Some layers at a time: beside the captures it needs less than 1.5 GB of the device's memory.

    Args:
        bad, good: captures, [n, L + 1, d].
        alpha: weight of the good prompts' spread; 0 is plain PCA of the bad prompts about the good mean.
        device: where to compute, and where the result is; the captures' own without one.

    Raises:
        NotApplicable: at no block do the bad prompts spread more than alpha times the good ones.

    Source: Abid et al. 2018, "Exploring patterns enriched in a dataset with contrastive principal component analysis";
    the common mean is ours, see above.
    """
    device = device or bad.device
    share = torch.cat(
        [
            torch.full((len(bad),), 1.0 / len(bad), dtype=torch.float64),
            torch.full((len(good),), -alpha / len(good), dtype=torch.float64),
        ]
    ).to(device)
    size, hidden = len(share), bad.shape[-1]
    count, rank = min(count, size, hidden), min(size, hidden)
    step = max(1, _CHUNK_BYTES // (8 * (size * hidden + 2 * rank * rank)))
    vectors, eigenvalues, unsettled = [], [], 0
    for start in range(0, bad.shape[1], step):
        layers = range(start, min(start + step, bad.shape[1]))
        samples = torch.empty(len(layers), size, hidden, dtype=torch.float64, device=device)
        nothing = torch.empty(len(layers), dtype=torch.float64, device=device)
        for place, layer in zip(samples, layers, strict=True):
            of_good = layer_of(good, layer, device)
            centre = of_good.mean(0)
            torch.sub(of_good, centre, out=place[len(bad) :])
            torch.sub(layer_of(bad, layer, device), centre, out=place[: len(bad)])
            nothing[layer - start] = _NOTHING * of_good.square().sum(-1).mean()
        top = top_eigenvectors(samples, share, count)
        there = top.values > nothing[:, None]
        eigenvalues.append(torch.where(there, top.values, torch.zeros_like(top.values)))
        vectors.append(torch.where(there[..., None], top.vectors, torch.zeros_like(top.vectors)))
        unsettled += int((~top.settled).sum())
    spectrum = Spectrum(torch.cat(vectors), torch.cat(eigenvalues), unsettled)
    if not (spectrum.eigenvalues[1:] > 0).any():
        raise NotApplicable(f"at no block do the bad prompts spread more than {alpha:g} times the good ones")
    return spectrum


def direction_weights(eigenvalues: torch.Tensor, rule: Literal["eigenvalues", "softmax"]) -> torch.Tensor:
    """Relative strength of k directions, [k] fp64, the first 1: shares of the sum, or of a softmax, averaged over
    the blocks that have eigenvalues.

    Args:
        eigenvalues: [L + 1, k], at least 0.
        rule: "eigenvalues": lambda_j / sum lambda; "softmax": softmax of (lambda - mean) / standard deviation over k.
    """
    present = eigenvalues[1:][eigenvalues[1:, 0] > 0]  # [blocks, k]
    if rule == "eigenvalues":
        shares = present / present.sum(-1, keepdim=True)
    else:
        spread = present.std(-1, correction=0, keepdim=True)
        shares = ((present - present.mean(-1, keepdim=True)) / spread.clamp_min(1e-30)).softmax(-1)
    shares = shares.mean(0)
    return shares / shares[0]
