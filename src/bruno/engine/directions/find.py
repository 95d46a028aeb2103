"""The direction that carries a behaviour, per layer: pure functions on tensors, composed by `find_directions`.

Captures come in as [n, L + 1, d] fp32; means and products are taken in fp64. Nothing here knows of models or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bruno.engine.directions.algebra import mean, mean_difference, normalise, project_out, separation
from bruno.errors import InputError
from bruno.settings.engine import Directions


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
