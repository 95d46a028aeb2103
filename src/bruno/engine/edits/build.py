"""What an edit is: data. Kernels give strengths by layer; `algebra.py` turns them and the weights into tensors.

During a search no weight changes. `session.py` applies the tensors around the running modules, `bake.py` applies the
same ones to stored weights. Pure: reads weights, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.algebra import (
    NormMode,
    RouterEdit,
    WriterEdit,
    gained,
    orthonormal,
    stack_experts,
    with_added,
    writer_edit,
)
from bruno.engine.edits.trial import Kernel, TrialEdit
from bruno.engine.model.architectures import ATTENTION, Writer
from bruno.errors import InputError

__all__ = [
    "EditBatch",
    "EditRules",
    "Kernel",
    "NormMode",
    "RouterEdit",
    "TrialEdit",
    "WriterEdit",
    "build_edits",
    "edit_router",
    "edit_weight",
    "gained",
    "is_edited",
    "orthonormal",
    "profile_factor",
    "trial_directions",
    "writer_edit",
]


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
    router: float = 0.0


@dataclass(frozen=True)
class EditBatch:
    """Edits of T trials, by the writer's index in `find_writers`' list. Writers no trial touches are absent.

    `first_layer[t]` is the lowest block that trial t edits (L when it edits none): below it the base model's states
    hold. `routers` has the edits of routers, by block.
    """

    trials: int
    edits: Mapping[int, WriterEdit]
    first_layer: tuple[int, ...]
    routers: Mapping[int, RouterEdit] = field(default_factory=dict)


@torch.inference_mode()
def build_edits(
    trials: Sequence[TrialEdit],
    directions: DirectionSet,
    writers: Sequence[Writer],
    rules: EditRules | NormMode = "column",
) -> EditBatch:
    """Turn trials into tensors (fp32; T = len(trials)). Reads each touched writer's weight once.

    Raises:
        InputError: a kernel names a component the model does not have, a direction index is out of range, or the rules
            name a head or an expert that is not there.
    """
    rules = EditRules(norm_mode=rules) if isinstance(rules, str) else rules
    layers = directions.vectors.shape[0] - 1
    known = {writer.component for writer in writers}
    for trial in trials:
        unknown = set(trial.kernels) - known
        if unknown:
            raise InputError(f"No component {', '.join(sorted(unknown))}: the model has {', '.join(sorted(known))}")
    edits: dict[int, WriterEdit] = {}
    routers: dict[int, RouterEdit] = {}
    first_layer = [layers] * len(trials)
    plans: dict[tuple[int, str, torch.device], _Plan] = {}  # experts of a block share theirs
    for index, writer in enumerate(writers):
        edited = [is_edited(trial, directions, rules, writer) for trial in trials]
        if any(edited):
            device = next(writer.module.parameters()).device
            key = (writer.layer, writer.component, device)
            if key not in plans:
                plans[key] = _plan(trials, directions, rules, writer, device)
            edits[index] = _edit_live(writer, plans[key], rules)
        if rules.router and writer.mixture is not None:
            blind = [_kernel_weight(trial, rules, directions, writer) != 0 for trial in trials]
            edited = [a or b for a, b in zip(edited, blind, strict=True)]
            if any(blind) and writer.layer not in routers:
                device = next(writer.module.parameters()).device
                routers[writer.layer] = edit_router(trials, directions, rules, writer, device)
        for t, touched in enumerate(edited):
            if touched:
                first_layer[t] = min(first_layer[t], writer.layer)
    return EditBatch(trials=len(trials), edits=edits, first_layer=tuple(first_layer), routers=routers)


def is_edited(
    trial: TrialEdit, directions: DirectionSet, rules: EditRules, writer: Writer, expert: int | None = None
) -> bool:
    """Whether a trial changes a writer's weight; of fused experts, one of them, or any where `expert` is None."""
    if rules.heads is not None and writer.component == ATTENTION and not rules.heads.get(writer.layer):
        return False
    if writer.mixture is not None:
        number = writer.expert if expert is None else expert
        chosen = _experts(writer, rules)
        if not chosen or (number is not None and number not in chosen):
            return False
    return _kernel_weight(trial, rules, directions, writer) != 0


def edit_weight(
    weight: torch.Tensor,
    trials: Sequence[TrialEdit],
    directions: DirectionSet,
    rules: EditRules,
    writer: Writer,
) -> WriterEdit:
    """The edit of one given weight [d, d_in] fp32 of a writer that `is_edited`, or of one of its experts.

    What `build_edits` does with the live weight: export gives the stored one, which a quantised search did not have.
    """
    plan = _plan(trials, directions, rules, writer, weight.device)
    return writer_edit(weight, *plan, rules.norm_mode, _columns(writer, rules, weight.device))


def edit_router(
    trials: Sequence[TrialEdit],
    directions: DirectionSet,
    rules: EditRules,
    writer: Writer,
    device: torch.device,
) -> RouterEdit:
    """The edit of the router of a routed expert's mixture. It reads the stream, so its directions have no gain."""
    basis, strengths = _removed(trials, directions, rules, writer, device)
    return RouterEdit(read=basis, write=-rules.router * strengths[..., None] * basis)


_Plan = tuple[torch.Tensor, torch.Tensor]


def _plan(
    trials: Sequence[TrialEdit], directions: DirectionSet, rules: EditRules, writer: Writer, device: torch.device
) -> _Plan:
    """What a writer's output loses and gains: orthonormal directions [T, k, d] and strengths [T, k], without its weight."""
    basis, strengths = _removed(trials, directions, rules, writer, device)
    basis = gained(basis, writer.post_norm_gain)
    compliance = directions.compliance
    if rules.compliance_strength and compliance is not None and writer.component == ATTENTION:
        added = gained(compliance[writer.layer + 1].to(device)[None], writer.post_norm_gain)[0]
        kernels = [_kernel_weight(trial, rules, directions, writer) for trial in trials]
        strength = rules.compliance_strength * torch.tensor(kernels, device=device)
        return with_added(basis, strengths, added, strength)
    return basis, strengths


def _kernel_weight(trial: TrialEdit, rules: EditRules, directions: DirectionSet, writer: Writer) -> float:
    """kernel(l) x profile(l) of the writer's component, 0 without a kernel."""
    kernel = trial.kernels.get(writer.component)
    if kernel is None:
        return 0.0
    layers = directions.vectors.shape[0] - 1
    return kernel.weight(writer.layer) * profile_factor(rules.layer_profile, writer.layer, layers)


def _removed(
    trials: Sequence[TrialEdit], directions: DirectionSet, rules: EditRules, writer: Writer, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions [T, k, d] that leave the stream at the writer's block, and how much of each, [T, k]."""
    basis = torch.stack([trial_directions(trial, directions, writer.layer) for trial in trials]).to(device)
    kernels = torch.tensor([_kernel_weight(trial, rules, directions, writer) for trial in trials])
    relative = directions.weights.cpu().expand(len(trials), -1).clone()
    relative[:, 1:] *= torch.tensor([trial.further for trial in trials])[:, None]
    return basis, (kernels[:, None] * directions.calibration * relative).to(device)


def _columns(writer: Writer, rules: EditRules, device: torch.device) -> torch.Tensor | None:
    """[d_in] True where the writer reads one of the chosen heads, None where all of it is edited. These are query heads:
    how keys and values are grouped does not matter."""
    if rules.heads is None or writer.component != ATTENTION:
        return None
    chosen = list(rules.heads[writer.layer])
    if not writer.heads:
        raise InputError(f"The heads of {writer.name} are not known", fix="Leave edit.heads off for this model")
    absent = [head for head in chosen if not 0 <= head < writer.heads]
    if absent:
        raise InputError(f"{writer.name} has heads 0 to {writer.heads - 1}, not {absent[0]}")
    mask = torch.zeros(writer.heads, writer.weight_shape[1] // writer.heads, dtype=torch.bool, device=device)
    mask[chosen] = True
    return mask.flatten()


def _experts(writer: Writer, rules: EditRules) -> frozenset[int]:
    """The routed experts of the writer's block that are edited; empty for writers that are none."""
    if writer.mixture is None:
        return frozenset()
    count = writer.mixture.experts
    if rules.experts is None:
        return frozenset(range(count))
    chosen = frozenset(rules.experts.get(writer.layer, ()))
    absent = sorted(number for number in chosen if not 0 <= number < count)
    if absent:
        raise InputError(f"Block {writer.layer} has experts 0 to {count - 1}, not {absent[0]}")
    return chosen


def _edit_live(writer: Writer, plan: _Plan, rules: EditRules) -> WriterEdit:
    """The edit of a live writer that is edited; of fused experts, one weight in fp32 at a time."""
    if not writer.experts:
        weight = writer.weight()
        return writer_edit(weight, *plan, rules.norm_mode, _columns(writer, rules, weight.device))
    chosen = _experts(writer, rules)
    edits = [
        writer_edit(writer.weight(number), *plan, rules.norm_mode) if number in chosen else None
        for number in range(writer.experts)
    ]
    return stack_experts(edits, writer.weight_shape[1])


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
