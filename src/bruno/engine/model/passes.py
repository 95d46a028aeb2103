"""One forward pass, as every stage runs it: the last position's logits, blocks entered in the middle, inputs kept.

Runs the model. Hooks and replaced forwards live for one pass only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import Cache

from bruno.engine.model.architectures import find_blocks
from bruno.engine.model.chat_format import Batch
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.probes import accepted

Mask = torch.Tensor | dict[str, torch.Tensor]
"""[B, P + S] with 1 where there is a token; or added to the attention scores, [B, 1, S, P + S], by kind of block where
kinds differ."""


def forward(
    loaded: LoadedModel,
    batch: Batch,
    mask: torch.Tensor,
    cache: Cache | None,
    start: int = 0,
    state: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model on a batch, from block `start` on with the given input there: logits of the last position, [B, V].

    Args:
        mask: [B, P + S], positions already in the cache in front.
        cache: what the pass continues and fills; None for a pass that keeps nothing.
    """
    with _starting_at(find_blocks(loaded.model), start, state):
        return logits_of(loaded, batch.input_ids, mask, batch.position_ids, cache, keep=1)[:, -1]


def logits_of(
    loaded: LoadedModel,
    input_ids: torch.Tensor,
    mask: Mask,
    position_ids: torch.Tensor,
    cache: Cache | None,
    *,
    keep: int = 0,
) -> torch.Tensor:
    """Logits [B, keep, V] of the last `keep` positions (0: of all)."""
    return _output(loaded, input_ids, mask, position_ids, cache, keep=keep).logits[:, -keep:]


def own_cache_pass(loaded: LoadedModel, batch: Batch, mask: torch.Tensor) -> tuple[torch.Tensor, Cache | None]:
    """A whole pass with the cache that the model makes for itself: last logits [B, V], and that cache (None: it has none)."""
    output = _output(loaded, batch.input_ids, mask, batch.position_ids, None, keep=1, use_cache=True)
    return output.logits[:, -1], getattr(output, "past_key_values", None)


def _output(
    loaded: LoadedModel,
    input_ids: torch.Tensor,
    mask: Mask,
    position_ids: torch.Tensor,
    cache: Cache | None,
    *,
    keep: int,
    use_cache: bool = False,
):
    width = input_ids.shape[1]
    last: dict[str, object] = {}
    if keep:
        # As indices, not as a number: that makes a strided view, for which a CPU copies the head once a row. Over
        # several GPUs the hidden states are not where the inputs are, and a number fits everywhere.
        spread = len(set(getattr(loaded.model, "hf_device_map", {}).values())) > 1
        indices = torch.arange(width - keep, width, device=input_ids.device)
        last = {"logits_to_keep": keep if spread else indices}
    return loaded.model(
        **accepted(
            loaded.model,
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache or cache is not None,
            **last,
        )
    )


@contextmanager
def keeping_inputs(loaded: LoadedModel, blocks: range) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the inputs [B, S, d] of the given blocks during a pass."""
    states: dict[int, torch.Tensor] = {}

    def keep(index: int):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            states[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    modules = find_blocks(loaded.model)
    handles = [modules[i].register_forward_pre_hook(keep(i), with_kwargs=True) for i in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _starting_at(blocks: nn.ModuleList, start: int, state: torch.Tensor | None) -> Iterator[None]:
    """Blocks below `start` hand their input on, and block `start` gets `state` instead of what they hand it."""
    if start == 0 or state is None:
        yield
        return

    def replace(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    def hand_on(hidden_states: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
        return hidden_states

    handle = blocks[start].register_forward_pre_hook(replace, with_kwargs=True)
    own = [block.__dict__.get("forward") for block in blocks[:start]]
    for block in blocks[:start]:
        block.forward = hand_on
    try:
        yield
    finally:
        handle.remove()
        for block, forward_of_it in zip(blocks[:start], own, strict=True):
            if forward_of_it is None:
                del block.forward
            else:
                block.forward = forward_of_it
