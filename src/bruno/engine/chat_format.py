"""Prompts to token ids: chat template, system text, no thinking, truncation from the middle, left padding, length buckets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Batch:
    """Left-padded rows. `indices` [B] says which prompts they are; `input_ids`, `attention_mask`, `position_ids` [B, S]."""

    indices: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


@dataclass(frozen=True)
class EncodedPrompts:
    """Token ids of N prompts, each ending where the answer's first token would come. `truncated` counts shortened prompts."""

    ids: tuple[tuple[int, ...], ...]
    pad_id: int
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, rows: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches of at most `rows` prompts of similar length, left-padded."""
        raise NotImplementedError


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, system_prompt: str = "", max_tokens: int = 1024
) -> EncodedPrompts:
    """Render each prompt as a one-turn conversation that waits for the assistant, and tokenize it."""
    raise NotImplementedError


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, max_tokens: int = 1024
) -> tuple[int, ...]:
    """Token ids of a conversation of several turns (roles system, user, assistant), waiting for the assistant."""
    raise NotImplementedError
