"""The top of the spectrum of X^T diag(share) X, for many layers at once and on any device. Pure, fp64.

Two ways. `filtered` only multiplies, which is what an accelerator is good at, and checks what it found against the
samples; `decompose` is the plain one, exact and slow, for small problems and for layers that the other does not settle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from bruno.engine.directions.algebra import normalise, orthonormal

# From this many dimensions that the samples span on, iterating is faster than decomposing, on a processor and elsewhere.
_LARGE, _LARGE_ON_DEVICE = 1024, 256
# Vectors in a block beside those that are asked for: the gap to the last of them is what convergence lives on.
_EXTRA = 21
# Largest residual |C v - lambda v| of an eigenvector that iterating found, relative to the largest eigenvalue.
_TOLERANCE = 1e-9
# Blocks in the Krylov space that iterating begins with.
_STARTED = 5
# Rounds of filtering before a layer is decomposed instead; a dozen is usual.
_ROUNDS = 60
# A filter's degree, and how much more it may raise one vector than another: what is left of the others is rounding.
_DEGREE, _RAISE = 32, 1e5
# Added to the unit diagonal of a block's inner products, so that their Cholesky factor exists.
_SHIFT = 1e-13
# Share of a column that must be new to its block; below, it is mostly rounding.
_NEW = 1e-6


class Top(NamedTuple):
    """Eigenvalues [c, k], descending, orthonormal eigenvectors [c, k, d], and [c] False where `filtered` could not settle
    them."""

    values: torch.Tensor
    vectors: torch.Tensor
    settled: torch.Tensor


def top_eigenvectors(samples: torch.Tensor, share: torch.Tensor, count: int) -> Top:
    """The `count` largest eigenvalues of X^T diag(share) X for X [c, n, d] fp64, share [n], and their vectors.

    Always exact; `settled` says which layers took no decomposition that iterating should have spared.
    """
    if min(samples.shape[1:]) < (_LARGE if samples.device.type == "cpu" else _LARGE_ON_DEVICE):
        return decompose(samples, share, count)
    found = filtered(samples, share, count)
    for layer in (~found.settled).nonzero()[:, 0].tolist():
        own = decompose(samples[layer : layer + 1], share, count)
        found.values[layer], found.vectors[layer] = own.values[0], own.vectors[0]
    return found


def decompose(samples: torch.Tensor, share: torch.Tensor, count: int) -> Top:
    """`top_eigenvectors` by decomposition in an orthonormal basis of the samples.

    With the thin QR X^T = Q R the matrix is Q (R diag(share) R^T) Q^T: what is decomposed has min(n, d) rows, never d.
    Q itself is not needed: an eigenvector of the small matrix w is X^T diag(share) R^T w / lambda in the large space.
    """
    triangle = torch.linalg.qr(samples.mT, mode="r").R  # [c, r, n]
    values, small = torch.linalg.eigh((triangle * share) @ triangle.mT)  # ascending
    values, small = values[:, -count:].flip(-1), small[..., -count:].flip(-1)  # [c, k], [c, r, k]
    loadings = share[:, None] * (triangle.mT @ small)  # [c, n, k]
    vectors = orthonormal(normalise((samples.mT @ loadings).mT))
    return Top(values, vectors, torch.ones(len(samples), dtype=torch.bool))


class _Samples:
    """C = X^T D X where there are fewer samples than dimensions: a vector X^T y stands as y [c, n, w], with the inner
    product y^T G y of the Gram matrix G = X X^T, and C takes it to D G y. Nothing of size d is touched."""

    def __init__(self, samples: torch.Tensor, share: torch.Tensor) -> None:
        self.gram = samples @ samples.mT
        self.share = share
        weights = (-share[share < 0]).sqrt()
        negative = self.gram[:, share < 0][..., share < 0] * weights[:, None] * weights
        self.low = _largest(negative)

    def dual(self, block: torch.Tensor) -> torch.Tensor:
        return self.gram @ block

    def image(self, block: torch.Tensor) -> torch.Tensor:
        return self.share[:, None] * self.dual(block)


class _Dimensions:
    """C as it is, [c, d, d], where there are no more dimensions than samples."""

    def __init__(self, samples: torch.Tensor, share: torch.Tensor) -> None:
        negative = samples[:, share < 0]
        minus = (negative.mT * -share[share < 0]) @ negative
        positive = samples[:, share >= 0]
        self.matrix = (positive.mT * share[share >= 0]) @ positive - minus
        self.low = _largest(minus)

    def dual(self, block: torch.Tensor) -> torch.Tensor:
        return block

    def image(self, block: torch.Tensor) -> torch.Tensor:
        return self.matrix @ block


def filtered(samples: torch.Tensor, share: torch.Tensor, count: int) -> Top:
    """`top_eigenvectors` by subspace iteration with Chebyshev filters, all layers of [c, n, d] together.

    A polynomial in C that is small on everything below the block's last eigenvalue raises what lies above; what has
    converged is held still by deflation. The result is then taken to the space of the samples, made exact there by one
    more Rayleigh-Ritz step, and judged by its true residual; `settled` is False for layers that fail.

    Source: Zhou, Saad, Tiago and Chelikowsky 2006, "Self-consistent-field calculations using Chebyshev-filtered
    subspace iteration".
    """
    batch, size, hidden = samples.shape
    wide = size < hidden
    problem = _Samples(samples, share) if wide else _Dimensions(samples, share)
    rank = min(size, hidden)
    generator = torch.Generator().manual_seed(0)
    width = min(count + _EXTRA, rank)
    start = torch.randn(rank, width, generator=generator, dtype=torch.float64).to(samples.device)
    block, low = _begun(start.expand(batch, -1, -1), problem)
    for _ in range(_ROUNDS):
        block = _orthonormalised(block, problem)
        values, block, residual = _ritz(block, problem)
        scale = torch.maximum(values[:, 0], -1e-3 * low)[:, None]
        settled = residual <= 0.1 * _TOLERANCE * scale
        if settled[:, :count].all():
            break
        block = _raised(block, values, settled, low, problem)
    return _judged(samples.mT @ block if wide else block, samples, share, count, low)


def _begun(start: torch.Tensor, problem: _Samples | _Dimensions) -> tuple[torch.Tensor, torch.Tensor]:
    """From a random block [c, m, w] the w uppermost Ritz vectors of a short block Krylov space, and [c] what no eigenvalue
    is below: the lowest Ritz value less its residual and a margin, where that is tighter than the bound that is certain.

    (If it is wrong all the same, iterating is slower or fails, which the residual shows; nothing false comes out.)
    """
    width = min(_STARTED * start.shape[-1], start.shape[-2])
    parts = [_orthonormalised(problem.image(start), problem)]
    while len(parts) < _STARTED:
        parts.append(_orthonormalised(problem.image(parts[-1]), problem))
    krylov = _orthonormalised(torch.cat(parts, dim=-1)[..., :width], problem)
    values, vectors, residual = _ritz(krylov, problem)
    estimate = 1.1 * values[:, -1] - residual[:, -1]
    low = -problem.low.cpu()
    # The image of a Ritz vector is itself, without what no sample has part in: that is invisible, and may be large.
    return problem.image(vectors[..., : start.shape[-1]]), torch.maximum(
        low, torch.minimum(estimate.nan_to_num(nan=-torch.inf), 0 * low)
    )


def _ritz(block: torch.Tensor, problem: _Samples | _Dimensions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eigenvalues of C within a block's span [c, w] (descending, on the CPU, whose LAPACK is faster at this size), the
    block turned to their vectors, and the residuals' lengths [c, w] on the CPU."""
    dual, image = problem.dual(block), problem.image(block)
    values, turn = _eigh(dual.mT @ image)
    turn = turn.to(block.device)
    block, image = block @ turn, image @ turn
    left = image - block * values.to(block.device)[:, None]
    return values, block, (left * problem.dual(left)).sum(1).clamp_min(0).sqrt().cpu()


def _eigh(small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    small = small.cpu()
    if not small.isfinite().all():  # judged as not converged
        return small.new_full(small.shape[:-1], torch.nan), torch.full_like(small, torch.nan)
    values, turn = torch.linalg.eigh((small + small.mT) / 2)
    return values.flip(-1), turn.flip(-1)


def _raised(
    block: torch.Tensor, values: torch.Tensor, settled: torch.Tensor, low: torch.Tensor, problem: _Samples | _Dimensions
) -> torch.Tensor:
    """p(C) of the vectors that have not settled, p the Chebyshev polynomial that is at most 1 on [low, last value]."""
    device = block.device
    middle, half = (values[:, -1] + low) / 2, ((values[:, -1] - low) / 2).clamp_min(1e-300)  # [c]
    first = torch.where(settled, -torch.inf, values).amax(-1)  # the largest that is still to be raised
    reach = torch.nan_to_num((first - middle) / half, nan=1.0, posinf=1e30, neginf=1.0).clamp(1.0 + 1e-6, 1e30)
    degree = max(1, min(_DEGREE, int(math.log(2 * _RAISE) / math.acosh(float(reach.max())))))
    held = block * settled.to(device)[:, None]
    dual = problem.dual(held) * (values - middle[:, None]).to(device)[:, None]
    middle, half = middle.to(device)[:, None, None], half.to(device)[:, None, None]

    def step(vectors: torch.Tensor) -> torch.Tensor:  # (C - middle) / half, and 0 on what is held
        return (problem.image(vectors) - middle * vectors - held @ (dual.mT @ vectors)) / half

    before, now = block, step(block)
    for _ in range(degree - 1):
        before, now = now, 2 * step(now) - before
    return torch.where(settled.to(device)[:, None], block, now)


def _orthonormalised(block: torch.Tensor, problem: _Samples | _Dimensions | None) -> torch.Tensor:
    """A block's span with orthonormal columns, in the problem's inner product; columns of nothing stay nothing, and
    columns of which only rounding is new become it.

    Source: the shifted Cholesky QR of Fukaya et al. 2020, "Shifted Cholesky QR for computing the QR factorization of
    ill-conditioned matrices".
    """
    eye = _SHIFT * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
    for _ in range(3):
        block = block / block.abs().amax(1, keepdim=True).clamp_min(1e-300)
        inner = block.mT @ (block if problem is None else problem.dual(block))
        length = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
        factor = torch.linalg.cholesky_ex(inner * inverse[:, None] * inverse[:, :, None] + eye).L
        new = factor.diagonal(dim1=-2, dim2=-1) > _NEW
        block = torch.linalg.solve_triangular(factor.mT, block * inverse[:, None], upper=True, left=False)
        block = torch.where(new[:, None], block, torch.zeros_like(block))
    return block


def _judged(found: torch.Tensor, samples: torch.Tensor, share: torch.Tensor, count: int, low: torch.Tensor) -> Top:
    """One Rayleigh-Ritz step among vectors [c, d, w], with the samples themselves, and its true residual."""
    found = _orthonormalised(found, None)
    image = samples.mT @ (share[:, None] * (samples @ found))
    values, turn = (part.to(samples.device) for part in _eigh(found.mT @ image))
    values, turn = values[:, :count], turn[..., :count]
    found = found @ turn
    residual = torch.linalg.vector_norm(image @ turn - found * values[:, None], dim=1)
    scale = torch.maximum(values[:, :1], -1e-3 * low.to(values)[:, None])
    good = (residual <= _TOLERANCE * scale).all(-1)
    nothing = ~found.any(1)  # [c, k]: fewer vectors than asked for
    return Top(torch.where(nothing, 0.0, values), found.mT, good.cpu())


def _largest(positive: torch.Tensor) -> torch.Tensor:
    """An upper bound of the largest eigenvalue of positive semidefinite matrices [c, m, m], at most m^(1/8) times it:
    (trace A^8)^(1/8), the 8-norm of the eigenvalues."""
    if not positive.shape[-1]:
        return positive.new_zeros(len(positive))
    size = torch.linalg.matrix_norm(positive)[:, None, None].clamp_min(1e-300)
    square = (positive / size) @ (positive / size)
    return size[:, 0, 0] * torch.linalg.matrix_norm(square @ square).pow(0.25)
