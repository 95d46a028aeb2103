"""Samples with known answers: classes that differ by what a test planted, and by nothing else."""

from __future__ import annotations

import torch


def units(count: int, hidden: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal directions, [count, d] fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(hidden, count, generator=generator, dtype=torch.float64)).Q.T


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


def concepts(
    sizes: tuple[int, ...] = (60, 40), hidden: int = 24, layers: int = 2, spread: float = 0.4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bad prompts of several kinds, each shifted along the behaviour and along its own direction.

    Returns:
        (bad, good) captures, the shared direction [d], and the kinds' own directions [kinds, d].
    """
    basis = units(len(sizes) + 1, hidden, seed)
    shared, own = basis[0], basis[1:]
    offset = 5 * noise(1, layers + 1, hidden, seed=seed + 1)
    kinds = torch.cat([(4 * shared + 4 * own[i]).expand(size, hidden) for i, size in enumerate(sizes)])
    bad = offset + kinds[:, None] + spread * noise(sum(sizes), layers + 1, hidden, seed=seed + 2)
    good = offset + spread * noise(sum(sizes), layers + 1, hidden, seed=seed + 3)
    return bad, good, shared, own
