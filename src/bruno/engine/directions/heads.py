"""Which attention heads write the direction: attribution through the output projection, and the choice by share.

Runs the model and keeps the last position of what each attention's output projection reads; changes nothing in it. The
heads are those of the queries, so grouped-query attention makes no difference here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bruno.engine.directions.algebra import normalise
from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.products import product
from bruno.engine.events import Emit
from bruno.engine.model.architectures import ATTENTION, Writer
from bruno.engine.model.capture import last_positions
from bruno.engine.model.chat_format import EncodedPrompts
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import halving
from bruno.errors import InputError


@torch.inference_mode()
def attribute_heads(
    loaded: LoadedModel,
    bad: EncodedPrompts,
    good: EncodedPrompts,
    directions: DirectionSet,
    *,
    emit: Emit,
    rows: int = 0,
) -> torch.Tensor:
    """How much more of the primary direction each head writes on bad prompts than on good ones, [L, H] fp64.

    a[l, h] = mean over bad of (v_l^T W_o[:, h] x_h) - the same over good, at the last prompt position, in units of the
    residual stream; x_h is the slice of the projection's input that head h fills. H is the largest number of heads in a
    block; NaN stands for heads that a block does not have.

    Raises:
        InputError: no writer has heads.
    """
    writers = [writer for writer in loaded.writers if writer.component == ATTENTION and writer.heads]
    if not writers:
        raise InputError(f"{loaded.name} has no attention heads that could be edited", fix="Leave --edit.heads off")
    attribution = torch.full((loaded.layers, max(w.heads for w in writers)), torch.nan, dtype=torch.float64)
    reads = [_reads(writer, directions.vectors[writer.layer + 1, 0]) for writer in writers]
    means = [_mean_written(loaded, writers, reads, prompts, emit, rows) for prompts in (bad, good)]
    for writer, of_bad, of_good in zip(writers, *means, strict=True):
        attribution[writer.layer, : writer.heads] = of_bad - of_good
    return attribution


def choose_heads(attribution: torch.Tensor, share: float) -> Mapping[int, tuple[int, ...]]:
    """The share (0 to 1, rounded up) of all heads that write most of the direction: block to its heads, ascending.

    Heads without a value (NaN) count nowhere; a block without a chosen head is absent.
    """
    order = attribution.nan_to_num(-math.inf).flatten().argsort(descending=True, stable=True).tolist()
    present = int((~attribution.isnan()).sum())
    chosen: dict[int, list[int]] = {}
    for flat in order[: math.ceil(share * present - 1e-9)]:
        block, head = divmod(flat, attribution.shape[1])
        chosen.setdefault(block, []).append(head)
    return {block: tuple(sorted(chosen[block])) for block in sorted(chosen)}


def _reads(writer: Writer, direction: torch.Tensor) -> torch.Tensor:
    """W_o^T v, [d_in] fp32: what of the projection's input ends up along the direction. Behind a post-norm of gain g
    that is W_o^T normalise(g * v), as in the edit itself."""
    weight, gain = writer.stored(), writer.post_norm_gain
    vector = direction.float().to(weight.device)
    return product((vector if gain is None else normalise(vector * gain.to(vector)))[None], weight)[0]


def _mean_written(
    loaded: LoadedModel,
    writers: Sequence[Writer],
    reads: Sequence[torch.Tensor],
    prompts: EncodedPrompts,
    emit: Emit,
    rows: int,
) -> list[torch.Tensor]:
    """Mean over prompts of what each head writes along the direction: [heads] fp64 on the CPU for each writer."""
    written = [torch.empty(len(prompts), writer.heads, dtype=torch.float64) for writer in writers]
    kept: dict[int, torch.Tensor] = {}

    def keep(index: int):
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            last = args[0][:, -1].float() * reads[index]  # [B, d_in]
            kept[index] = last.unflatten(-1, (writers[index].heads, -1)).double().sum(-1)  # [B, heads]

        return hook

    def one_size(size: int) -> None:
        for batch in prompts.batches(size, loaded.device):
            last_positions(loaded, batch)  # for the pass; what it returns is not needed here
            for index, values in kept.items():
                written[index][batch.indices] = values.cpu()

    handles = [writer.module.register_forward_pre_hook(keep(index)) for index, writer in enumerate(writers)]
    try:
        halving(one_size, rows or loaded.default_rows, emit)
    finally:
        for handle in handles:
            handle.remove()
    return [values.mean(0) for values in written]
