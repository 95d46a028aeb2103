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
from bruno.engine.events import Emit
from bruno.engine.model.architectures import ATTENTION, Writer, decoder_config
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
    residual stream; x_h is the slice of the projection's input that head h fills. NaN for blocks without attention heads
    (linear attention).

    Raises:
        InputError: an output projection's input does not divide into the heads that the config names.
    """
    writers = [writer for writer in loaded.writers if writer.component == ATTENTION]
    heads = int(decoder_config(loaded.model).num_attention_heads)
    reads = {writer.layer: _reads(writer, heads, directions.vectors[writer.layer + 1, 0]) for writer in writers}
    attribution = torch.full((loaded.layers, heads), torch.nan, dtype=torch.float64)
    if not writers:
        raise InputError(f"{loaded.name} has no attention whose heads could be edited", fix="Leave --edit.heads off")
    layers = [writer.layer for writer in writers]
    means = [_mean_written(loaded, writers, reads, prompts, emit, rows) for prompts in (bad, good)]
    attribution[layers] = means[0] - means[1]
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


def _reads(writer: Writer, heads: int, direction: torch.Tensor) -> torch.Tensor:
    """W_o^T v, [d_in] fp32: what of the projection's input ends up along the direction. Behind a post-norm of gain g
    that is W_o^T normalise(g * v), as in the edit itself."""
    d_in = writer.weight_shape[1]
    if d_in % heads:
        raise InputError(
            f"{writer.name} reads {d_in} values, which do not divide into {heads} heads", fix="Leave --edit.heads off"
        )
    weight = writer.weight()
    vector = direction.to(weight)
    gain = writer.post_norm_gain
    return weight.T @ (vector if gain is None else normalise(vector * gain.to(weight)))


def _mean_written(
    loaded: LoadedModel,
    writers: Sequence[Writer],
    reads: Mapping[int, torch.Tensor],
    prompts: EncodedPrompts,
    emit: Emit,
    rows: int,
) -> torch.Tensor:
    """Mean over prompts of what each head writes along the direction, [writers, H] fp64 on the CPU."""
    heads = int(decoder_config(loaded.model).num_attention_heads)
    written = torch.empty(len(prompts), len(writers), heads, dtype=torch.float64)
    kept: dict[int, torch.Tensor] = {}

    def keep(writer: Writer):
        read = reads[writer.layer]

        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            last = args[0][:, -1].float().flatten(1)  # [B, d_in]
            kept[writer.layer] = (last * read).unflatten(-1, (heads, -1)).sum(-1)  # [B, H]

        return hook

    def one_size(size: int) -> None:
        for batch in prompts.batches(size, loaded.device):
            loaded.model.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
            written[batch.indices] = torch.stack([kept[w.layer].double().cpu() for w in writers], dim=1)

    handles = [writer.module.register_forward_pre_hook(keep(writer)) for writer in writers]
    try:
        halving(one_size, rows or loaded.default_rows, emit)
    finally:
        for handle in handles:
            handle.remove()
    return written.mean(0)
