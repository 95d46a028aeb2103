"""What an edit must not touch: components that are taken out of every direction, in a fixed order. Pure on tensors.

Helpfulness first, then the good mean, then the sacred directions. Each step takes out the whole span so far, so that a
later step cannot put back what an earlier one removed, and the overlap with the sacred directions is measured on what
actually arrives there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bruno.engine.directions.algebra import normalise, orthonormal, project_out
from bruno.engine.directions.contrastive import contrastive_pca
from bruno.engine.directions.record import block_list
from bruno.errors import InputError

FLOOR = 0.1
"""Share of a direction that must be left after the sacred directions are taken out of it."""
# Of which less than this is left after helpfulness and the good mean, a direction is not one of its own.
_NOTHING = 1e-3


@dataclass(frozen=True)
class Shielded:
    """Directions after protection.

    Attributes:
        vectors: [L + 1, k, d] fp64, orthonormal over k, orthogonal to `span`; zero where nothing of one was left.
        span: [L + 1, m, d] fp64, orthonormal: everything protected (m = 0: nothing is).
        overlap: [L + 1, k] fp64, norm of each unit direction's projection on the sacred span, 0 to 1.
        left: [L + 1, k] fp64, share of each direction that the sacred ones left of it.
    """

    vectors: torch.Tensor
    span: torch.Tensor
    overlap: torch.Tensor
    left: torch.Tensor


def sacred_directions(
    capability: torch.Tensor, plain: torch.Tensor, count: int, device: torch.device | None = None
) -> torch.Tensor:
    """What sets capability prompts apart from plain text: top of contrastive PCA, [L + 1, <= count, d] fp64.

    Args:
        capability, plain: captures, [n, L + 1, d].
        device: as for `contrastive_pca`.
    """
    return contrastive_pca(capability, plain, count, device=device).vectors


def protect(
    vectors: torch.Tensor,
    *,
    helpful: torch.Tensor | None = None,
    good_mean: torch.Tensor | None = None,
    sacred: torch.Tensor | None = None,
) -> Shielded:
    """Take helpfulness [L + 1, d], the good mean [L + 1, d] and the sacred directions [L + 1, s, d], in this order, out
    of every direction [L + 1, k, d]; then renormalise and re-orthonormalise.

    |v . s| is below 1e-6 afterwards for every protected s, in fp32 as well.
    """
    plain = [part[:, None].double() for part in (helpful, good_mean) if part is not None]
    vectors = normalise(vectors.double())
    for last in range(1, len(plain) + 1):
        vectors = project_out(vectors, torch.cat(plain[:last], dim=1))
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    vectors = torch.where(length > _NOTHING, normalise(vectors), torch.zeros_like(vectors))
    overlap = torch.zeros(vectors.shape[:2], dtype=torch.float64, device=vectors.device)
    left = torch.linalg.vector_norm(vectors, dim=-1)
    everything = plain if sacred is None else [*plain, sacred.double()]
    span = orthonormal(torch.cat(everything, dim=1)) if everything else vectors[:, :0]
    if sacred is not None:
        overlap = torch.linalg.vector_norm(vectors @ orthonormal(sacred).mT, dim=-1)
        vectors = project_out(vectors, span)
        left = torch.linalg.vector_norm(vectors, dim=-1)
    # Normalising magnifies the rounding of what was projected out, so it is projected out once more.
    vectors = normalise(project_out(normalise(vectors), span))
    return Shielded(orthonormal(vectors, floor=_NOTHING), span, overlap, left)


def check_overlap(shielded: Shielded, *, threshold: float, allow: bool) -> str:
    """The warning about directions that overlap too much, where that is allowed; empty when none does.

    Raises:
        InputError: the overlap is above `threshold` at a block and not allowed, or less than `FLOOR` of a direction
            would be left, allowed or not.
    """
    overlap, left = shielded.overlap[1:], shielded.left[1:]  # the embedding is not edited
    worst = float(overlap.max())
    gone = (overlap > 0) & (left < FLOOR)
    if gone.any():
        raise InputError(
            f"The sacred directions leave less than {FLOOR:.0%} of the direction at {_blocks(gone)}",
            fix="Protect fewer (--protection.n_sacred_directions) or other prompts (--protection.sacred)",
        )
    over = overlap > threshold
    if not over.any():
        return ""
    text = (
        f"The direction overlaps with the sacred ones by {worst:.2f} (more than {threshold:g} at {_blocks(over)}): "
        "removing it costs capability"
    )
    if not allow:
        raise InputError(text, fix="Choose other sacred prompts, or allow it with --protection.allow_sacred_overlap")
    return text


def _blocks(mask: torch.Tensor) -> str:
    return block_list(i for i, there in enumerate(mask.any(-1).tolist()) if there)
