"""The compliance direction of contrastive activation addition (CAA): from refused towards answered bad prompts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bruno.engine.directions.algebra import mean, normalise, orthonormal, project_out, unit_difference
from bruno.engine.directions.record import NotApplicable

MIN_SAMPLES = 10
"""Fewest prompts that must be refused, and answered."""


@dataclass(frozen=True)
class Compliance:
    """What is added, per layer.

    Attributes:
        vectors: [L + 1, d] fp64, unit, orthogonal to the removed and the protected directions of the layer; zero where
            it is left out.
        overlap: [L + 1] fp64, cosine between the raw direction and the span of the removed ones, 0 to 1.
    """

    vectors: torch.Tensor
    overlap: torch.Tensor


def compliance_direction(
    bad: torch.Tensor,
    refused: torch.Tensor,
    removed: torch.Tensor,
    *,
    max_overlap: float,
    protected: torch.Tensor | None = None,
) -> Compliance:
    """c = normalise(mean R(answered bad) - mean R(refused bad)), made orthogonal to what is removed or protected.

    Args:
        bad: captures, [n, L + 1, d].
        refused: [n] bool.
        removed: directions that the edit removes, [L + 1, k, d] orthonormal; it is computed where they are.
        max_overlap: a layer whose overlap is larger is left out: what would be added is mostly the removal again.
        protected: [L + 1, m, d], directions no edit may touch.

    Raises:
        NotApplicable: fewer than `MIN_SAMPLES` of either kind, or every block is left out.

    Source: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition".
    """
    counts = int(refused.sum()), int((~refused).sum())
    if min(counts) < MIN_SAMPLES:
        raise NotApplicable(f"{counts[0]} refused and {counts[1]} answered bad prompts; it needs {MIN_SAMPLES} of each")
    where = removed.device
    raw = unit_difference(mean(bad, ~refused, where), mean(bad, refused, where))  # [L + 1, d]
    if not raw[1:].any():
        raise NotApplicable("the answered and the refused bad prompts do not differ at any block")
    removed = removed.double()
    overlap = torch.linalg.vector_norm((orthonormal(removed) @ raw[..., None])[..., 0], dim=-1)
    keep_out = removed if protected is None else torch.cat([removed, protected.double()], dim=1)
    left = project_out(raw, keep_out)
    alive = (torch.linalg.vector_norm(left, dim=-1) > 1e-3) & (overlap <= max_overlap)
    if not alive[1:].any():
        least = overlap[1:].min()
        raise NotApplicable(
            f"it overlaps with the removed directions at every block ({least:.2f} at least, {max_overlap:g} allowed)"
        )
    return Compliance(torch.where(alive[:, None], normalise(left), torch.zeros_like(left)), overlap)
