"""What an edit is: data. Kernels give strengths by layer; the algebra of engine.md section 3 turns them into tensors.

During a search no weight changes. An edit of one writer ``y = W x + b`` is four tensors with a leading trial axis T, so
that the rows of one batch can belong to different trials:

    x' = input_scale * x                        [T, d_in]
    y' = output_scale * (y + (y read^T) write)  read, write [T, k, d]; output_scale [T, d]

`session.py` applies them around the running modules, `bake.py` applies the same ones to stored weights. Pure: reads
weights, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.model.architectures import Writer
from bruno.errors import InputError

NormMode = Literal["column", "none", "row", "frobenius"]

# Below this share of a squared norm the vector was removed whole; what is left is rounding, and is not scaled up.
_VANISHED = 1e-6


@dataclass(frozen=True)
class Kernel:
    """Strength of the edit by layer: a tent around `position` (engine.md section 3).

    Attributes:
        max_weight: strength at the peak; 1 removes the direction whole. Below 0 counts as 0, so that in a search "off"
            has mass.
        position: layer of the peak, 0 to L - 1, fractional.
        min_fraction: share of `max_weight` left at distance `reach`, 0 to 1.
        reach: layers further than this from the peak are not edited; at least 0.
    """

    max_weight: float
    position: float
    min_fraction: float
    reach: float

    def weight(self, layer: int) -> float:
        """Strength at a decoder block (0-based), 0 or more."""
        distance = abs(layer - self.position)
        if distance > self.reach:
            return 0.0
        slope = (distance / self.reach) * (self.min_fraction - 1.0) if self.reach > 0 else 0.0
        return max(0.0, self.max_weight * (1.0 + slope))


@dataclass(frozen=True)
class TrialEdit:
    """One trial of the search: which direction is removed, and how strongly per component and layer.

    Attributes:
        scope: "global" removes one direction, taken at `direction_index`, from every layer; "per layer" each its own.
        direction_index: block whose output the global direction is taken from, 0 to L - 1, fractional (neighbours are
            interpolated after aligning their signs). None with scope "per layer".
        kernels: by component name ("attn.o_proj", "mlp.down_proj"); a component without a kernel is left alone.
    """

    scope: Literal["global", "per layer"]
    direction_index: float | None
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


@dataclass(frozen=True)
class WriterEdit:
    """The edit of one writer for T trials; tensors as in the module docstring, fp32, on the writer's device."""

    input_scale: torch.Tensor | None
    read: torch.Tensor
    write: torch.Tensor
    output_scale: torch.Tensor | None


@dataclass(frozen=True)
class EditBatch:
    """Edits of T trials, by the writer's index in `find_writers`' list. Writers no trial touches are absent.

    `first_layer[t]` is the lowest block that trial t edits (L when it edits none): below it the base model's states
    hold.
    """

    trials: int
    edits: Mapping[int, WriterEdit]
    first_layer: tuple[int, ...]


@torch.inference_mode()
def build_edits(
    trials: Sequence[TrialEdit], directions: DirectionSet, writers: Sequence[Writer], norm_mode: NormMode = "column"
) -> EditBatch:
    """Turn trials into tensors (fp32; T = len(trials)). Reads each touched writer's weight once.

    Raises:
        InputError: a kernel names a component the model does not have, or a direction index is out of range.
    """
    layers = directions.vectors.shape[0] - 1
    known = {writer.component for writer in writers}
    for trial in trials:
        unknown = set(trial.kernels) - known
        if unknown:
            raise InputError(f"No component {', '.join(sorted(unknown))}: the model has {', '.join(sorted(known))}")
    shared = [trial_directions(trial, directions, 0) if trial.scope == "global" else None for trial in trials]
    edits: dict[int, WriterEdit] = {}
    first_layer = [layers] * len(trials)
    for index, writer in enumerate(writers):
        kernels = [trial.kernels.get(writer.component) for trial in trials]
        strengths = [kernel.weight(writer.layer) if kernel else 0.0 for kernel in kernels]
        if not any(strengths):
            continue
        for t, strength in enumerate(strengths):
            if strength:
                first_layer[t] = min(first_layer[t], writer.layer)
        own = [
            trial_directions(t, directions, writer.layer) if v is None else v
            for t, v in zip(trials, shared, strict=True)
        ]
        weight = writer.weight()
        basis = gained(torch.stack(own).to(weight.device), writer.post_norm_gain)
        weights = torch.tensor(strengths, device=weight.device)[:, None] * directions.weights.to(weight.device)
        edits[index] = writer_edit(weight, basis, weights, norm_mode)
    return EditBatch(trials=len(trials), edits=edits, first_layer=tuple(first_layer))


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


def orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Gram-Schmidt in order over k, in fp64: [..., k, d] -> the same shape; zero vectors stay zero. Keeps signs."""
    done: list[torch.Tensor] = []
    for vector in vectors.double().unbind(-2):
        for _ in range(2):  # the second pass removes what rounding left of the first
            for other in done:
                vector = vector - (vector * other).sum(-1, keepdim=True) * other  # noqa: PLW2901
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        done.append(torch.where(length > 1e-9, vector / length.clamp_min(1e-30), torch.zeros_like(vector)))
    return torch.stack(done, dim=-2).to(vectors.dtype)


def gained(basis: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """Directions as the weight's output must lose them: normalise(g * v) behind a post-norm of gain g, v otherwise.

    What is added to the stream is g * z / rms(z); its component along v is (g * v) . z / rms(z).
    """
    return basis if gain is None else orthonormal(basis * gain.to(basis.device))


def writer_edit(weight: torch.Tensor, basis: torch.Tensor, strengths: torch.Tensor, norm_mode: NormMode) -> WriterEdit:
    """The four tensors for one writer.

    Args:
        weight: W, [d, d_in] fp32.
        basis: V, orthonormal directions [T, k, d].
        strengths: w, [T, k]; 1 removes a direction whole.
        norm_mode: which norms of W' are kept.

    With `none`, W' = (I - V diag(w) V^T) W. `column` and `frobenius` scale the input after that, which commutes with
    the projection. `row` projects the row-normalised weight and restores each row's norm, which puts part of the
    direction back: it is there to compare with other tools.
    """
    if norm_mode == "row":
        return _row_edit(weight, basis, strengths)
    edit = WriterEdit(input_scale=None, read=basis, write=-strengths[..., None] * basis, output_scale=None)
    if norm_mode == "none":
        return edit
    removed = strengths * (2.0 - strengths)  # share of the squared component along v that goes: 1 - (1 - w)^2
    along = basis @ weight  # [T, k, d_in]
    lost = (removed[..., None] * along.square()).sum(1)  # [T, d_in]
    before = weight.square().sum(0)  # [d_in]
    if norm_mode == "frobenius":
        lost, before = lost.sum(-1, keepdim=True), before.sum(-1, keepdim=True)
    scale = _restoring(before - lost, before).expand(-1, weight.shape[1]).contiguous()
    return WriterEdit(input_scale=scale, read=edit.read, write=edit.write, output_scale=None)


def _row_edit(weight: torch.Tensor, basis: torch.Tensor, strengths: torch.Tensor) -> WriterEdit:
    """Row norms kept, in closed form. What = W / n; What' = What - V diag(w) U with U = V^T What; W'_i = n_i What'_i/|.|.

    |What'_i|^2 = |What_i|^2 - 2 sum_k w_k v_ik (What U^T)_ik + (w v_i) (U U^T) (w v_i)^T, with |What_i| = 1.
    """
    norms = torch.linalg.vector_norm(weight, dim=1)  # [d]
    inverse = torch.where(norms > 0, 1.0 / norms.clamp_min(1e-30), torch.zeros_like(norms))
    unit_rows = weight * inverse[:, None]
    along = basis @ unit_rows  # U [T, k, d_in]
    weighted = strengths[..., None] * basis  # [T, k, d]
    cross = along @ unit_rows.T  # (What U^T)^T [T, k, d]
    gram = along @ along.transpose(1, 2)  # [T, k, k]
    after = 1.0 - 2.0 * (weighted * cross).sum(1) + (weighted * (gram @ weighted)).sum(1)  # [T, d]
    scale = torch.where(norms > 0, _restoring(after, torch.ones_like(after)), torch.ones_like(after))
    return WriterEdit(input_scale=None, read=basis * inverse, write=-weighted * norms, output_scale=scale)


def _restoring(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """sqrt(before / after) of squared norms; 1 where nothing was there or nothing is left to scale."""
    alive = after > _VANISHED * before
    return torch.where(alive, (before / after.clamp_min(1e-30)).sqrt(), torch.ones_like(after))
