"""What an edit is: data. Kernels give strengths by layer; `algebra.py` turns them and the weights into tensors.

During a search no weight changes. `session.py` applies the tensors around the running modules, `bake.py` applies the
same ones to stored weights. Pure: reads weights, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.algebra import NormMode, RouterEdit, WriterEdit, gained, orthonormal, writer_edit
from bruno.engine.edits.plan import EditRules, Part, Plan, gains_of, kernel_weight, profile_factor, trial_directions
from bruno.engine.edits.products import norms_of
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
    """Turn trials into tensors (fp32; T = len(trials)). Reads each touched writer's weight once, waits for nothing.

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
    plans = _Plans(trials, directions, rules, writers)
    edits: dict[int, WriterEdit] = {}
    routers: dict[int, RouterEdit] = {}
    first_layer = [layers] * len(trials)
    for index, writer in enumerate(writers):
        wanted = plans.wanted(writer)
        edited = wanted if any(wanted) and _takes_part(writer, rules) else [False] * len(trials)
        if any(edited):
            edits[index] = _edit_live(writer, plans.of(writer), rules)
        if rules.router and writer.mixture is not None:
            edited = [a or b for a, b in zip(edited, wanted, strict=True)]
            if any(wanted) and writer.layer not in routers:
                routers[writer.layer] = _router_edit(plans.of(writer, stream=True), rules)
        for t, touched in enumerate(edited):
            if touched:
                first_layer[t] = min(first_layer[t], writer.layer)
    return EditBatch(trials=len(trials), edits=edits, first_layer=tuple(first_layer), routers=routers)


class _Plans:
    """A plan for each component and device that has writers, made when the first of them is edited."""

    def __init__(
        self, trials: Sequence[TrialEdit], directions: DirectionSet, rules: EditRules, writers: Sequence[Writer]
    ) -> None:
        self._shared = trials, directions, rules
        self._writers = writers
        self._plans: dict[tuple[str, torch.device, bool], Plan] = {}
        self._wanted: dict[tuple[str, int], list[bool]] = {}

    def wanted(self, writer: Writer) -> list[bool]:
        """For each trial, whether its kernel reaches the writer's component in its block."""
        trials, directions, rules = self._shared
        key = writer.component, writer.layer
        if key not in self._wanted:
            self._wanted[key] = [kernel_weight(trial, rules, directions, *key) != 0 for trial in trials]
        return self._wanted[key]

    def of(self, writer: Writer, *, stream: bool = False) -> Part:
        component, device = writer.component, writer.parameter.device
        key = component, device, stream
        if key not in self._plans:
            same = [w for w in self._writers if w.component == component and w.parameter.device == device]
            self._plans[key] = Plan(*self._shared, component, gains_of(same), device, stream=stream)
        return self._plans[key].of(writer.layer)


def is_edited(
    trial: TrialEdit, directions: DirectionSet, rules: EditRules, writer: Writer, expert: int | None = None
) -> bool:
    """Whether a trial changes a writer's weight; of fused experts, one of them, or any where `expert` is None."""
    return (
        _takes_part(writer, rules, expert)
        and kernel_weight(trial, rules, directions, writer.component, writer.layer) != 0
    )


def _takes_part(writer: Writer, rules: EditRules, expert: int | None = None) -> bool:
    """Whether the rules' heads and experts leave the writer in."""
    if rules.heads is not None and writer.component == ATTENTION and not rules.heads.get(writer.layer):
        return False
    if writer.mixture is None:
        return True
    number = writer.expert if expert is None else expert
    chosen = _experts(writer, rules)
    return bool(chosen) and (number is None or number in chosen)


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
    part = Plan(trials, directions, rules, writer.component, gains_of([writer]), weight.device).of(writer.layer)
    columns = _columns(writer, rules, weight.device)
    return writer_edit(weight, part.basis, part.strengths, rules.norm_mode, columns)


def edit_router(
    trials: Sequence[TrialEdit],
    directions: DirectionSet,
    rules: EditRules,
    writer: Writer,
    device: torch.device,
) -> RouterEdit:
    """The edit of the router of a routed expert's mixture. It reads the stream, so its directions have no gain."""
    plan = Plan(trials, directions, rules, writer.component, {writer.layer: None}, device, stream=True)
    return _router_edit(plan.of(writer.layer), rules)


def _router_edit(part: Part, rules: EditRules) -> RouterEdit:
    return RouterEdit(read=part.basis, write=-rules.router * part.strengths[..., None] * part.basis)


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
    mask = torch.zeros(writer.heads, writer.weight_shape[1] // writer.heads, dtype=torch.bool)
    mask[chosen] = True
    return mask.flatten().to(device, non_blocking=True)


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


def _edit_live(writer: Writer, part: Part, rules: EditRules) -> WriterEdit:
    """The edit of a live writer that is edited, from its weight as it is kept."""
    weight, mode = writer.stored(), rules.norm_mode
    norms = None if mode == "none" else norms_of(writer, weight, -1 if mode == "row" else -2)
    columns = experts = None
    if writer.experts:
        chosen = _experts(writer, rules)
        if len(chosen) < writer.experts:
            experts = torch.tensor([number in chosen for number in range(writer.experts)])
            experts = experts.to(weight.device, non_blocking=True)
    else:
        columns = _columns(writer, rules, weight.device)
    return writer_edit(
        weight, part.basis, part.strengths, mode, columns, pieces=part.pieces, norms=norms, experts=experts
    )
