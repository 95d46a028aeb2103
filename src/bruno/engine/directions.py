"""The direction that carries a behaviour, per layer: pure functions on tensors, composed by `find_directions`.

Captures come in as [n, L + 1, d] fp32; means and products are taken in fp64. Nothing here knows of models or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bruno.errors import InputError
from bruno.settings.engine import Directions

# A difference smaller than this share of the mean's length is rounding (the embedding of a shared last token, say).
_NOTHING = 1e-6


@dataclass(frozen=True)
class DirectionSet:
    """Directions to remove.

    Attributes:
        vectors: [L + 1, k, d] fp32, orthonormal over k at each layer (zero where the classes do not differ); index l is
            the output of block l - 1, index 0 the embedding.
        weights: [k] fp32, relative strength of each direction, the first 1.
        used: names of the methods that made them, in order.
        skipped: method name to the reason it could not apply.
        separation: [L + 1] fp32, distance of the class means along the first direction in pooled standard deviations.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    used: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    separation: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


@torch.inference_mode()
def find_directions(bad: torch.Tensor, good: torch.Tensor, settings: Directions) -> DirectionSet:
    """Directions from captures of the bad and the good prompts ([n, L + 1, d] each), as the settings say.

    Winsorising, which concerns single vectors, has happened in `capture`; it is named in `used` here.

    Raises:
        InputError: fewer than two prompts in a class, or captures that do not differ at any layer.
    """
    for name, sample in (("bad", bad), ("good", good)):
        if len(sample) < 2:
            raise InputError(f"A direction needs at least two {name} prompts, there are {len(sample)}")
        if not torch.isfinite(sample).all():
            raise InputError(f"The captures of the {name} prompts are not finite", fix="Try --loading.dtype float32")
    used = ["winsorised captures"] if settings.winsorize_quantile < 1 else []
    direction = mean_difference(bad, good)
    used.append("mean difference")
    if settings.project_good_mean:
        direction = normalise(project_out(direction, mean(good)[:, None]))
        used.append("projected")
    present = torch.linalg.vector_norm(direction[1:], dim=-1) > 0
    if not present.any():
        raise InputError("The bad and the good prompts do not differ at any layer", fix="Choose other prompt sets")
    skipped = {}
    if not present.all():
        absent = ", ".join(str(i) for i, there in enumerate(present.tolist()) if not there)
        skipped["mean difference"] = f"the prompt sets do not differ after block {absent}"
    vectors = direction.float()
    return DirectionSet(
        vectors=vectors[:, None],
        weights=torch.ones(1),
        used=tuple(used),
        skipped=skipped,
        separation=separation(bad, good, vectors),
    )


def mean(sample: torch.Tensor) -> torch.Tensor:
    """Mean over prompts in fp64, [n, L + 1, d] -> [L + 1, d], one layer at a time to spare memory."""
    return torch.stack([sample[:, layer].double().mean(0) for layer in range(sample.shape[1])])


def mean_difference(bad: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
    """normalise(mean bad - mean good) per layer, [L + 1, d] fp64; zero where the means agree to rounding.

    Source: the difference of class means, as in Arditi et al. 2024, "Refusal in Language Models Is Mediated by a
    Single Direction".
    """
    bad_mean, good_mean = mean(bad), mean(good)
    difference = bad_mean - good_mean
    scale = torch.linalg.vector_norm(good_mean, dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    return torch.where(length > _NOTHING * scale, normalise(difference), torch.zeros_like(difference))


def project_out(vectors: torch.Tensor, from_span: torch.Tensor) -> torch.Tensor:
    """Vectors without their component in a span, per layer, fp64.

    Args:
        vectors: [L + 1, d].
        from_span: [L + 1, m, d], any m vectors; they need be neither unit nor orthogonal.
    """
    basis = torch.linalg.qr(from_span.double().transpose(-1, -2)).Q  # [L + 1, d, m]
    vectors = vectors.double()
    for _ in range(2):  # the second pass removes what rounding left of the first
        vectors = vectors - (basis @ (basis.transpose(-1, -2) @ vectors[..., None]))[..., 0]
    return vectors


def normalise(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors along the last axis; zero stays zero."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > 1e-12, vectors / length.clamp_min(1e-30), torch.zeros_like(vectors))


def separation(bad: torch.Tensor, good: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Distance of the class means along v in pooled standard deviations (d'), per layer: [L + 1] fp32."""
    along_bad = torch.einsum("nld,ld->nl", bad, vectors.to(bad)).double()
    along_good = torch.einsum("nld,ld->nl", good, vectors.to(good)).double()
    spread = ((along_bad.var(0) + along_good.var(0)) / 2).sqrt()
    gap = along_bad.mean(0) - along_good.mean(0)
    return torch.where(spread > 0, gap / spread.clamp_min(1e-30), torch.zeros_like(gap)).float()


def winsorise(vectors: torch.Tensor, quantile: float) -> torch.Tensor:
    """Clamp each vector (last axis) to the q-quantile of its own absolute values, so that no outlier dimension rules
    a mean. 0.5 < q <= 1; 1 changes nothing."""
    if quantile >= 1:
        return vectors
    count = vectors.shape[-1]
    rank = min(count, max(1, round(quantile * count)))
    limit = vectors.abs().kthvalue(rank, dim=-1, keepdim=True).values
    return vectors.clamp(-limit, limit)
