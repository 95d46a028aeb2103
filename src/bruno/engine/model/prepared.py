"""What trials share about a set of prompts, as data: their states in the base model, and what a pass over them gives.

Made by `prefill.py`. Pure tensors; runs no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from transformers import Cache

from bruno.engine.model.cache import BlockCache, joined
from bruno.engine.model.chat_format import Batch, EncodedPrompts

CacheUse = Literal["blocks", "own", "none"]
"""How answers are written: with caches made of `BlockCache`s, with the one that the model makes for itself, or by
computing every position again for every token."""


@dataclass(frozen=True)
class PreparedBatch:
    """Some of the prompts, without the shared prefix, as the base model sees them.

    Attributes:
        batch: their own tokens, left-padded, [B, S].
        mask: [B, P + S], the prefix in front.
        logits: [B, V] of the first answer token.
        states: block index to its input [B, S, d]; empty when states are not kept.
        blocks: what each block keeps of the own positions; empty when states are not kept.
    """

    batch: Batch
    mask: torch.Tensor
    logits: torch.Tensor
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    blocks: list[BlockCache] = field(default_factory=list)

    def repeated(self, times: int, start: int) -> PreparedBatch:
        """All rows so many times, one behind the other, with what a pass from block `start` on needs."""

        def again(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if times == 1 else tensor.repeat(times, *([1] * (tensor.dim() - 1)))

        return PreparedBatch(
            batch=Batch(*(again(getattr(self.batch, name)) for name in Batch.__dataclass_fields__)),
            mask=again(self.mask),
            logits=again(self.logits),
            states={start: again(self.states[start])} if start in self.states else {},
            blocks=[
                BlockCache(tuple(map(again, block.positions)), tuple(map(again, block.summary)))
                for block in self.blocks[:start]
            ],
        )

    def rows(self, part: slice) -> PreparedBatch:
        """Some of the rows, as views."""
        return PreparedBatch(
            batch=Batch(*(getattr(self.batch, name)[part] for name in Batch.__dataclass_fields__)),
            mask=self.mask[part],
            logits=self.logits[part],
            states={block: state[part] for block, state in self.states.items()},
            blocks=[block.rows(part) for block in self.blocks],
        )


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts with what the base model computes for them once and every trial reuses. Made by `with_states`.

    Attributes:
        prompts: all N, whole.
        prefix: length P of the shared prefix, 0 when nothing is shared.
        prefix_states, prefix_blocks: as in `PreparedBatch`, for the prefix as one row.
        batches: the prompts' own parts, by similar length.
        layers: number of decoder blocks L.
        reuse: whether states are kept.
        cache: how answers are written.
        graphs: whether answers are written by captured CUDA graphs.
        answers: whether answers can be written; otherwise first tokens alone can be asked for.
    """

    prompts: EncodedPrompts
    layers: int
    prefix: int
    prefix_states: dict[int, torch.Tensor]
    prefix_blocks: list[BlockCache]
    batches: list[PreparedBatch]
    reuse: bool
    cache: CacheUse = "blocks"
    graphs: bool = False
    answers: bool = True

    def for_first_tokens(self) -> PreparedPrompts:
        """Without what only answers need."""
        return replace(self, batches=[replace(item, blocks=[]) for item in self.batches], answers=False)

    def start(self, first_layer: int) -> int:
        """The highest block, at most `first_layer`, that a pass can start at; L when the base model's pass will do."""
        if not self.reuse or not self.batches or first_layer >= self.layers:
            return self.layers if self.reuse else 0
        return max((block for block in self.batches[0].states if block <= first_layer), default=0)

    def pieces(self, rows: int) -> Iterator[PreparedBatch]:
        """The batches, cut where they have more than `rows` rows (0: as they are)."""
        for item in self.batches:
            count = len(item.batch.indices)
            if not rows or count <= rows:
                yield item
            else:
                yield from (item.rows(slice(begin, begin + rows)) for begin in range(0, count, rows))


@dataclass(frozen=True)
class Pass:
    """What a pass over a `PreparedBatch` gives.

    Attributes:
        logits: [B, V] of the first answer token.
        written: what each block keeps of the P + S positions, from the first block that the pass ran; empty where
            `PreparedPrompts.cache` is not "blocks".
        prefix, below: what the blocks before that one keep, as the base model left it: of the prefix (one row), and of
            the own positions.
        own: the model's own cache, where that is used.
    """

    logits: torch.Tensor
    written: list[BlockCache]
    prefix: list[BlockCache] = field(default_factory=list)
    below: list[BlockCache] = field(default_factory=list)
    own: Cache | None = None

    @property
    def blocks(self) -> list[BlockCache]:
        """What every block keeps of the P + S positions."""
        return [*joined(self.prefix, self.below, len(self.logits)), *self.written]

    def shapes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(heads, size) of each block's keys, and of its values."""
        pairs = ([(t.shape[1], t.shape[3]) for t in block.positions] for block in (*self.below, *self.written))
        return [(keys, values) for keys, values in pairs]

    def write(self, keys: list[torch.Tensor], values: list[torch.Tensor], rows: slice, prefix: int, width: int) -> None:
        """Put keys and values into some rows of tensors of full length, laid out as by `widened`."""
        for block, sides in enumerate(zip(keys, values, strict=True)):
            for side, whole in enumerate(sides):
                if block < len(self.below):
                    early = self.prefix[block].positions[side] if self.prefix else None
                    late = self.below[block].positions[side]
                else:
                    both = self.written[block - len(self.below)].positions[side]
                    early, late = both[:, :, :prefix], both[:, :, prefix:]
                if early is not None:
                    whole[rows, :, : early.shape[2]] = early
                whole[rows, :, width - late.shape[2] : width] = late
