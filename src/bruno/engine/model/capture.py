"""Residual-stream vectors at the last prompt position, for every block, in fp32.

Hooks keep one position of each block's output, so memory is N x (L + 1) x d x 4 bytes and never grows with the length of
prompts. The language head is not run.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from bruno.engine.directions.algebra import winsorise
from bruno.engine.events import Emit, Notice, duration
from bruno.engine.model.architectures import decoder_config, find_blocks
from bruno.engine.model.chat_format import Batch, EncodedPrompts
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import free_memory, halving
from bruno.engine.model.probes import accepted

_SAY_EVERY = 15.0  # seconds between two words about a capture's progress


def capture(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0, winsorize_quantile: float = 1.0
) -> torch.Tensor:
    """Residuals R, [N, L + 1, d] fp32 on the CPU, in the order of `prompts`.

    Index 0 is the embedding, l the output of block l - 1 (0-based). Independent of batch size, order and padding. In memory
    a layer's vectors lie side by side, because directions are taken layer by layer.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so by an event.
        winsorize_quantile: see `directions.winsorise`.

    Raises:
        BrunoError: memory does not hold a single prompt.
    """
    residuals = torch.empty(loaded.layers + 1, len(prompts), loaded.hidden_size)
    rows = rows or _rows(loaded, prompts)

    def one_size(size: int) -> None:
        arrivals = _Arrivals(residuals, emit)
        for batch in prompts.batches(size, loaded.device, equal_lengths=not loaded.pads):
            arrivals.send(batch.indices, winsorise(last_positions(loaded, batch), winsorize_quantile))
        arrivals.store()

    halving(one_size, rows, emit)
    return residuals.transpose(0, 1)


def _rows(loaded: LoadedModel, prompts: EncodedPrompts) -> int:
    """Prompts in one pass: the usual number, or as many of the longest as half of the free memory holds."""
    longest = max(map(len, prompts.ids), default=1)
    config, d = decoder_config(loaded.model), loaded.hidden_size
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * d
    width = torch.finfo(loaded.dtype).bits // 8
    # the MLP's three inner tensors and a block's streams, for each token; the mask; what is kept of each prompt
    row = longest * width * (3 * inner + 12 * d) + 4 * longest**2 + 8 * (loaded.layers + 1) * d
    return max(1, min(loaded.default_rows, free_memory(loaded.device) // 2 // row))


class _Arrivals:
    """Takes batches to the CPU behind the next pass: a GPU is never waited for while there is work for it. Says how far a
    long capture is.

    Args:
        residuals: [L + 1, N, d] on the CPU, to be filled.
    """

    def __init__(self, residuals: torch.Tensor, emit: Emit) -> None:
        self._residuals, self._emit = residuals, emit
        self._waiting: tuple[torch.Tensor, torch.Tensor, torch.Event | None] | None = None
        self._done, self._began = 0, time.monotonic()
        self._said = self._began

    def send(self, indices: torch.Tensor, captured: torch.Tensor) -> None:
        """Start a batch [L + 1, B, d] on its way, and store the one before."""
        event = None
        if captured.is_cuda:
            there = torch.empty(captured.shape, dtype=captured.dtype, pin_memory=True)
            there.copy_(captured, non_blocking=True)
            event = torch.cuda.current_stream(captured.device).record_event()
            captured = there
        self.store()
        self._waiting = indices, captured.cpu(), event

    def store(self) -> None:
        """Wait for the batch on its way, and put it where it belongs."""
        if self._waiting is None:
            return
        (indices, captured, event), self._waiting = self._waiting, None
        if event is not None:
            event.synchronize()
        self._residuals[:, indices] = captured
        self._done += len(indices)
        self._progress()

    def _progress(self) -> None:
        now, count = time.monotonic(), self._residuals.shape[1]
        if now - self._said < _SAY_EVERY or self._done == count:
            return
        self._said = now
        rate = self._done / (now - self._began)
        left = duration((count - self._done) / rate)
        self._emit(Notice(text=f"Captured {self._done} of {count} prompts: {rate:.3g} a second, {left} left"))


@torch.inference_mode()
def last_positions(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """One pass over a batch: [L + 1, B, d] fp32 on the model's device (of several, where its last block is)."""
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
    where = kept[len(blocks)].device
    return torch.stack([kept[layer].to(where, non_blocking=True) for layer in range(len(blocks) + 1)])


def _last(hidden: torch.Tensor) -> torch.Tensor:
    """The last position as fp32; a copy, so that the pass's full tensor is freed."""
    return hidden[:, -1].detach().to(torch.float32, copy=True)
