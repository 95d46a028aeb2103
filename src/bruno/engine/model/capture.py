"""Residual-stream vectors at the last prompt position, for every block, in fp32.

Hooks keep one position of each block's output, so memory is N x (L + 1) x d x 4 bytes and never grows with the length of
prompts. The language head is not run.
"""

from __future__ import annotations

import torch
from torch import nn

from bruno.engine.directions.algebra import winsorise
from bruno.engine.events import Emit
from bruno.engine.model.architectures import find_blocks
from bruno.engine.model.chat_format import Batch, EncodedPrompts
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import halving
from bruno.engine.model.probes import accepted


def capture(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0, winsorize_quantile: float = 1.0
) -> torch.Tensor:
    """Residuals R, [N, L + 1, d] fp32 on the CPU, in the order of `prompts`.

    Index 0 is the embedding, l the output of block l - 1 (0-based). Independent of batch size, order and padding.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so by an event.
        winsorize_quantile: see `directions.winsorise`.

    Raises:
        BrunoError: memory does not hold a single prompt.
    """
    residuals = torch.empty(len(prompts), loaded.layers + 1, loaded.hidden_size)

    def one_size(size: int) -> None:
        for batch in prompts.batches(size, loaded.device, equal_lengths=not loaded.pads):
            residuals[batch.indices] = winsorise(last_positions(loaded, batch), winsorize_quantile)

    halving(one_size, rows or loaded.default_rows, emit)
    return residuals


@torch.inference_mode()
def last_positions(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """One pass over a batch: [B, L + 1, d] fp32 on the CPU."""
    blocks = find_blocks(loaded.model)
    kept: dict[int, torch.Tensor] = {}

    def embedding(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        kept[0] = _last(args[0] if args else kwargs["hidden_states"])

    def output_of(layer: int):
        def hook(_module: nn.Module, _args: tuple, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            kept[layer] = _last(output if isinstance(output, torch.Tensor) else output[0])

        return hook

    handles = [blocks[0].register_forward_pre_hook(embedding, with_kwargs=True)]
    handles += [block.register_forward_hook(output_of(i + 1)) for i, block in enumerate(blocks)]
    try:
        loaded.model.base_model(
            **accepted(
                loaded.model.base_model,
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
        )
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([kept[layer].to("cpu") for layer in range(len(blocks) + 1)], dim=1)


def _last(hidden: torch.Tensor) -> torch.Tensor:
    """The last position as fp32; a copy, so that the pass's full tensor is freed."""
    return hidden[:, -1].detach().to(torch.float32, copy=True)
