"""Contrastive PCA about the good mean: directions in which the bad prompts spread more than the good ones. Pure.

    C = E_bad[(x - m)(x - m)^T] - alpha E_good[(x - m)(x - m)^T],    m = E_good[x]

Second moments about the *good* mean for both classes, so that the shift of the means, which is most of a behaviour, is
in C. Centred per class (as the method is usually written) C loses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bruno.engine.directions.algebra import normalise, orthonormal
from bruno.engine.directions.record import NotApplicable

# Layers are decomposed together as far as their fp64 samples fit here; QR and its result take about three times that.
_CHUNK_BYTES = 256 * 2**20
# An eigenvalue below this share of the good prompts' squared length is rounding.
_NOTHING = 1e-12
# From this many dimensions that the samples span on, iterating is faster than decomposing.
_LARGE = 512
# Vectors in a Krylov block beside those that are asked for: they speed up the last ones.
_EXTRA = 8
# Largest residual |C v - lambda v| of an eigenvector that iterating found, relative to |C|.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """The top of contrastive PCA, per layer.

    Attributes:
        vectors: [L + 1, k, d] fp64, orthonormal over k; zero where the eigenvalue is not positive. Signs are arbitrary.
        eigenvalues: [L + 1, k] fp64, descending, at least 0: how much more the bad prompts spread along each.
    """

    vectors: torch.Tensor
    eigenvalues: torch.Tensor


def contrastive_pca(bad: torch.Tensor, good: torch.Tensor, count: int, alpha: float = 1.0) -> Spectrum:
    """The `count` top eigenvectors of C at every layer; fewer where the samples span less.

    Runs on the captures' device, some layers at a time; beside the captures it needs about 1 GB.

    Args:
        bad, good: captures, [n, L + 1, d].
        alpha: weight of the good prompts' spread; 0 is plain PCA of the bad prompts about the good mean.

    Raises:
        NotApplicable: at no block do the bad prompts spread more than alpha times the good ones.

    Source: Abid et al. 2018, "Exploring patterns enriched in a dataset with contrastive principal component analysis";
    the common mean is ours, see above.
    """
    share = torch.cat(
        [
            torch.full((len(bad),), 1.0 / len(bad), dtype=torch.float64),
            torch.full((len(good),), -alpha / len(good), dtype=torch.float64),
        ]
    ).to(bad.device)
    size, hidden = len(share), bad.shape[-1]
    count = min(count, size, hidden)
    step = max(1, _CHUNK_BYTES // (8 * size * hidden))
    vectors, eigenvalues = [], []
    for start in range(0, bad.shape[1], step):
        layers = slice(start, start + step)
        centre = good[:, layers].double().mean(0)  # [c, d]
        samples = torch.cat([bad[:, layers], good[:, layers]]).double().sub_(centre).transpose(0, 1)  # [c, n, d]
        values, found = top_eigenvectors(samples, share, count)
        nothing = _NOTHING * good[:, layers].double().square().sum(-1).mean(0)  # [c]
        there = values > nothing[:, None]
        eigenvalues.append(torch.where(there, values, torch.zeros_like(values)))
        vectors.append(torch.where(there[..., None], found, torch.zeros_like(found)))
    spectrum = Spectrum(torch.cat(vectors), torch.cat(eigenvalues))
    if not (spectrum.eigenvalues[1:] > 0).any():
        raise NotApplicable(f"at no block do the bad prompts spread more than {alpha:g} times the good ones")
    return spectrum


def top_eigenvectors(samples: torch.Tensor, share: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [c, k] (descending) and orthonormal eigenvectors [c, k, d] of X^T diag(share) X for X [c, n, d].

    Many samples of a wide model: `krylov` first, which only multiplies. Where that does not converge, and for small
    problems, `decompose`, which is exact.
    """
    found = krylov(samples, share, count) if min(samples.shape[1:]) >= _LARGE else None
    return decompose(samples, share, count) if found is None else found


def decompose(samples: torch.Tensor, share: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_eigenvectors` by decomposition in an orthonormal basis of the samples.

    With the thin QR X^T = Q R the matrix is Q (R diag(share) R^T) Q^T: what is decomposed has min(n, d) rows, never d.
    Q itself is not needed: an eigenvector of the small matrix w is X^T diag(share) R^T w / lambda in the large space.
    """
    triangle = torch.linalg.qr(samples.mT, mode="r").R  # [c, r, n]
    values, small = torch.linalg.eigh((triangle * share) @ triangle.mT)  # ascending
    values, small = values[:, -count:].flip(-1), small[..., -count:].flip(-1)  # [c, k], [c, r, k]
    loadings = share[:, None] * (triangle.mT @ small)  # [c, n, k]
    return values, orthonormal(normalise((samples.mT @ loadings).mT))


def krylov(samples: torch.Tensor, share: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`top_eigenvectors` by block Lanczos iteration with full reorthogonalisation; None when a quarter of the samples'
    dimensions does not hold them to a residual of `_TOLERANCE`.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., section 10.3.6.
    """
    batch, size, hidden = samples.shape
    width = count + _EXTRA

    def image_of(vectors: torch.Tensor) -> torch.Tensor:  # [c, d, w] -> C @ vectors
        return samples.mT @ (share[:, None] * (samples @ vectors))

    start = torch.randn(hidden, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = torch.linalg.qr(image_of(start.to(samples.device).expand(batch, -1, -1))).Q
    basis = images = samples.new_zeros(batch, hidden, 0)
    steps = min(size, hidden) // 4 // width
    checks = {steps, *(4 * 2**i for i in range(8))}
    for step in range(1, steps + 1):
        image = image_of(block)
        basis, images = torch.cat([basis, block], dim=-1), torch.cat([images, image], dim=-1)
        if step in checks:
            values, inside = torch.linalg.eigh((basis.mT @ images).cpu())  # small: the processor's LAPACK is faster
            largest = values.abs().amax(-1, keepdim=True).to(samples.device)
            values = values[:, -count:].flip(-1).to(samples.device)
            inside = inside[..., -count:].flip(-1).to(samples.device)
            found = basis @ inside  # [c, d, k]
            residual = torch.linalg.vector_norm(images @ inside - found * values[:, None], dim=1)
            if (residual <= _TOLERANCE * largest).all():
                return values, orthonormal(found.mT)
        for _ in range(2):  # the second pass removes what rounding left of the first
            block = torch.linalg.qr(image - basis @ (basis.mT @ image)).Q
            image = block
    return None


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
