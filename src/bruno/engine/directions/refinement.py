"""Iterative refinement: capture again with the edit active, and add the direction that is left.

The edit and the captures belong to the caller; this module decides, and holds no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from bruno.engine.directions.algebra import mean, normalise, orthonormal, project_out, unit_difference, working_device
from bruno.engine.directions.find import DirectionSet, Samples
from bruno.engine.directions.record import Record
from bruno.engine.events import Emit
from bruno.settings.engine import Directions

CaptureWithEdit = Callable[[DirectionSet], tuple[torch.Tensor, torch.Tensor]]
"""(bad, good) captures [n, L + 1, d] of a model from which these directions are removed."""
KlOf = Callable[[DirectionSet], float]
"""First-token KL(base || edited) in nats when these directions are removed."""


@torch.inference_mode()
def refine(
    directions: DirectionSet,
    samples: Samples,
    settings: Directions,
    *,
    capture_with_edit: CaptureWithEdit,
    kl_of: KlOf,
    emit: Emit | None = None,
    device: torch.device | None = None,
) -> DirectionSet:
    """Up to `refinement_rounds` rounds; each adds one direction at full strength, or is the last.

    A round takes the mean difference of the captures under the edit, without the directions that are removed or
    protected already. What is left counts as a share of the same distance before any edit, averaged over the blocks that
    have a direction. Refinement ends when that share is below `min_direction_magnitude`, or when removing the new direction
    too costs more than `max_kl_per_round`: then the new direction is not kept. `used` says what was added, `skipped` why
    it ended early.

    Args:
        directions: from `find_directions`; nothing is changed in place.
        samples: the captures they came from.
        capture_with_edit, kl_of: run the model with every direction of a set removed at full strength.
        device: where means are taken; the captures' own without one.
    """
    record = Record(emit)
    device = working_device(device)

    def of(sample: torch.Tensor) -> torch.Tensor:
        return mean(sample, device=device).to(directions.vectors.device)

    good_mean = of(samples.good)
    first = of(samples.bad) - good_mean
    protected = _or_nothing(directions.protected, first)
    whole = torch.linalg.vector_norm(project_out(first, protected), dim=-1)  # [L + 1]
    counts = (whole > 1e-6 * torch.linalg.vector_norm(good_mean, dim=-1)) & directions.vectors[:, 0].any(-1)
    counts[0] = False
    added: list[str] = []
    for number in range(1, settings.refinement_rounds + 1):
        bad_mean, good_mean = (of(capture) for capture in capture_with_edit(directions))
        known = torch.cat([directions.vectors.double(), protected], dim=1)
        left = project_out(bad_mean - good_mean, known)
        share = float((torch.linalg.vector_norm(left, dim=-1)[counts] / whole[counts]).mean()) if counts.any() else 0.0
        if share < settings.min_direction_magnitude:
            reason = f"in round {number} only {share:.2f} of the classes' distance is left"
            record.skip("refinement", f"{reason}, below {settings.min_direction_magnitude:g}", _so_far(added))
            break
        there = unit_difference(bad_mean, good_mean).any(-1, keepdim=True)
        new = torch.where(there, normalise(project_out(normalise(left), known)), torch.zeros_like(left))
        candidate = _with(directions, new)
        cost = kl_of(candidate)
        if not cost <= settings.max_kl_per_round:  # NaN is not a price to pay either
            reason = f"round {number}'s edit costs a KL divergence of {cost:.3g}"
            record.skip("refinement", f"{reason}, more than {settings.max_kl_per_round:g}", _so_far(added))
            break
        directions = candidate
        added.append(f"{share:.2f}")
    if added:
        record.use(f"refinement ({len(added)} more, from {', '.join(added)} of the classes' distance)")
    return replace(directions, used=(*directions.used, *record.used), skipped={**directions.skipped, **record.skipped})


def _with(directions: DirectionSet, new: torch.Tensor) -> DirectionSet:
    """One more direction [L + 1, d] at full strength. What is added (CAA) stays orthogonal to what is removed."""
    vectors = orthonormal(torch.cat([directions.vectors.double(), new[:, None]], dim=1), floor=1e-3)
    compliance = directions.compliance
    if compliance is not None:
        keep_out = torch.cat([vectors, _or_nothing(directions.protected, new)], dim=1)
        left = project_out(compliance, keep_out)
        alive = torch.linalg.vector_norm(left, dim=-1, keepdim=True) > 1e-3
        compliance = torch.where(alive, normalise(left), torch.zeros_like(left)).float()
    return replace(
        directions,
        vectors=vectors.float(),
        weights=torch.cat([directions.weights, directions.weights.new_ones(1)]),
        compliance=compliance,
    )


def _or_nothing(protected: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The protected span in fp64; [L + 1, 0, d] when nothing is protected."""
    return like.new_zeros((len(like), 0, like.shape[-1])).double() if protected is None else protected.double()


def _so_far(added: list[str]) -> str:
    return f"the directions of {len(added)} round{'s' if len(added) != 1 else ''}" if added else "no direction added"
