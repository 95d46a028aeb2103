"""What trials remove from each block, before any weight is looked at: directions and strengths, all blocks together.

Pure. One plan serves all writers of a component on a device: a handful of kernels for the whole model in place of a handful
for each writer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.algebra import NormMode, gained, orthonormal, with_added
from bruno.engine.edits.products import split, widens
from bruno.engine.edits.trial import TrialEdit
from bruno.engine.model.architectures import ATTENTION, Writer
from bruno.errors import InputError


@dataclass(frozen=True)
class EditRules:
    """What is the same for every trial of a run.

    Attributes:
        norm_mode: which norms of an edited weight are kept.
        layer_profile: factors on every strength, spread evenly from the first block to the last and interpolated; empty
            for none.
        compliance_strength: how much of `DirectionSet.compliance` the attention writers gain, relative to the strength
            of the edit there; 0 or more. Nothing without such a direction.
        heads: block to the attention heads that are edited; None edits whole outputs. The attention of a block that is
            absent is not edited.
        experts: block to the routed experts that are edited; None edits all. Those of a block that is absent are not
            edited. Shared experts always are.
        router: share s, 0 to 1, of W_g <- W_g (I - s w V V^T), w the strengths of the MLP component in that block.
    """

    norm_mode: NormMode = "column"
    layer_profile: tuple[float, ...] = ()
    compliance_strength: float = 0.0
    heads: Mapping[int, tuple[int, ...]] | None = None
    experts: Mapping[int, tuple[int, ...]] | None = None
    router: float = field(default=0.0)


@dataclass(frozen=True)
class Part:
    """What one writer's output loses and gains.

    Attributes:
        basis: orthonormal directions [T, k, d] fp32.
        strengths: [T, k].
        pieces: `products.split` of the basis as rows, where the device multiplies them so; or None.
    """

    basis: torch.Tensor
    strengths: torch.Tensor
    pieces: torch.Tensor | None = None


class Plan:
    """Directions and strengths of T trials for the writers of one component on one device.

    Args:
        layers: the blocks of these writers, each once; gains: of the norms behind them, by block (missing: none).
        stream: plans for what reads the stream: no gains, nothing added.
    """

    def __init__(
        self,
        trials: Sequence[TrialEdit],
        directions: DirectionSet,
        rules: EditRules,
        component: str,
        gains: Mapping[int, torch.Tensor | None],
        device: torch.device,
        *,
        stream: bool = False,
    ) -> None:
        layers = list(gains)
        self._place = {layer: i for i, layer in enumerate(layers)}
        kernels = torch.tensor([[kernel_weight(t, rules, directions, component, i) for t in trials] for i in layers])
        relative = directions.weights.cpu().expand(len(trials), -1).clone()
        relative[:, 1:] *= torch.tensor([trial.further for trial in trials])[:, None]
        strengths = (kernels[..., None] * directions.calibration * relative).to(device, non_blocking=True)  # [L, T, k]
        basis = _bases(trials, directions, layers, device)  # [L or 1, T, k, d]
        compliance = None if stream or component != ATTENTION else directions.compliance
        if not stream:
            basis = _behind_norms(basis, list(gains.values()))
        if rules.compliance_strength and compliance is not None:
            added = compliance[[layer + 1 for layer in layers]].to(device)[:, None, None]  # [L, 1, 1, d]
            added = _behind_norms(added, list(gains.values()))[:, 0, 0]
            strength = rules.compliance_strength * kernels.to(device, non_blocking=True)
            basis, strengths = with_added(basis.expand(len(layers), -1, -1, -1), strengths, added, strength)
        self._basis, self._strengths = basis, strengths
        self._pieces = split(basis.flatten(1, 2)) if widens(device) else None  # [L or 1, 3, T * k, d]

    def of(self, layer: int) -> Part:
        place = self._place[layer]
        shared = 0 if len(self._basis) == 1 else place
        pieces = None if self._pieces is None else self._pieces[shared]
        return Part(self._basis[shared], self._strengths[place], pieces)


def kernel_weight(trial: TrialEdit, rules: EditRules, directions: DirectionSet, component: str, layer: int) -> float:
    """kernel(l) x profile(l) of a component at a block, 0 without a kernel."""
    kernel = trial.kernels.get(component)
    if kernel is None:
        return 0.0
    return kernel.weight(layer) * profile_factor(rules.layer_profile, layer, directions.vectors.shape[0] - 1)


def profile_factor(profile: Sequence[float], layer: int, layers: int) -> float:
    """The profile at a block: its factors lie evenly from block 0 to L - 1, with straight lines between. 1 without one."""
    if not profile:
        return 1.0
    position = layer / max(layers - 1, 1) * (len(profile) - 1)
    low = min(int(position), len(profile) - 1)
    high = min(low + 1, len(profile) - 1)
    return profile[low] + (position - low) * (profile[high] - profile[low])


def trial_directions(trial: TrialEdit, directions: DirectionSet, layer: int) -> torch.Tensor:
    """The directions a trial removes at a block, [k, d], orthonormal.

    Block i's output is `directions.vectors[i + 1]` (0 is the embedding). Between two blocks the neighbours are
    interpolated after each direction of the upper one is given the sign that agrees with the lower one's: an
    eigenvector has none of its own, and a sum of opposites would vanish.
    """
    last = directions.vectors.shape[0] - 2
    if trial.scope == "per layer":
        return directions.vectors[layer + 1]
    position = trial.direction_index
    if position is None or not 0 <= position <= last:
        raise InputError(f"A global direction needs an index from 0 to {last}, not {position}")
    low = min(math.floor(position), last)
    below, above = directions.vectors[low + 1], directions.vectors[min(low + 1, last) + 1]
    signs = torch.where((below * above).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return orthonormal(torch.lerp(below, signs * above, position - low))


def gains_of(writers: Sequence[Writer]) -> dict[int, torch.Tensor | None]:
    """Block to the gain of the norm behind its writers of one component (experts of a block share it)."""
    return {writer.layer: writer.post_norm_gain for writer in writers}


def _bases(
    trials: Sequence[TrialEdit], directions: DirectionSet, layers: Sequence[int], device: torch.device
) -> torch.Tensor:
    """[L, T, k, d], or [1, T, k, d] where no trial has directions of the layers' own."""
    if all(trial.scope == "global" for trial in trials):
        whole = torch.stack([trial_directions(trial, directions, 0) for trial in trials])
        return whole.to(device, non_blocking=True)[None]
    own = directions.vectors[[layer + 1 for layer in layers]].to(device, non_blocking=True)  # [L, k, d]
    return torch.stack(
        [
            own
            if trial.scope == "per layer"
            else trial_directions(trial, directions, 0).to(device, non_blocking=True).expand_as(own)
            for trial in trials
        ],
        dim=1,
    )


def _behind_norms(basis: torch.Tensor, gains: list[torch.Tensor | None]) -> torch.Tensor:
    """[L or 1, T, k, d] as the weights' outputs must lose them: see `algebra.gained`."""
    known = [gain for gain in gains if gain is not None]
    if not known:
        return basis
    if len(known) != len(gains):  # each for itself: without a norm nothing may change, not even by rounding
        parts = [gained(basis[i if len(basis) > 1 else 0], gain) for i, gain in enumerate(gains)]
        return torch.stack(parts)
    return gained(basis, torch.stack([gain.to(basis.device) for gain in known])[:, None, None])
