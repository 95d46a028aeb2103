"""Residual-stream vectors at the last prompt position, for every block, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bruno.engine.chat_format import EncodedPrompts
    from bruno.engine.loading import Emit, LoadedModel


def capture(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0, winsorize_quantile: float = 1.0
) -> torch.Tensor:
    """Residuals R, [N, L + 1, d] fp32 on the CPU, in the order of `prompts`; index 0 is the embedding, l the output of block l.

    Independent of batch size, order and padding. Out of memory halves `rows` (0: chosen here) and says so by an event.
    """
    raise NotImplementedError
