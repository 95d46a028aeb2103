"""Memory that writing answers on a GPU uses again for every batch of trials: caches of full length, and captured graphs.

A captured graph reads and writes the addresses that it was captured with, so these tensors are made once and kept. They
belong to one model (`LoadedModel.workspace`) and are let go of when memory runs out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_KEPT_GRAPHS = 96  # of all row counts, lengths and edits; more means that something changes with every batch


@dataclass
class Buffers:
    """What a wave of at most R rows and W positions is written in; live rows are the first ones.

    Attributes:
        keys, values: by block, [R, heads, W, size].
        mask: [R, 1, 1, W], 0 where a position is seen, the type's lowest number where it is not.
        position: [R] long, of the newest token.
        newest: [R] long, the newest token.
        trial: [R] long, whose edit applies.
        place: [1] long, where in W the next token goes.
        places: [W] long, 0 to W - 1.
        count: [1] long, how many tokens have been put into `written`.
        written: [W, R] long.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor
    position: torch.Tensor
    newest: torch.Tensor
    trial: torch.Tensor
    place: torch.Tensor
    places: torch.Tensor
    count: torch.Tensor
    written: torch.Tensor

    @property
    def rows(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        return self.mask.shape[3]

    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))


class FixedLayer(DynamicLayer):
    """One block's keys and values in the buffers; the newest go where `place` says, into the first `rows` rows, of which
    the first `seen` positions are read."""

    def __init__(self, buffers: Buffers, block: int) -> None:
        super().__init__()
        self.into = (buffers.keys[block], buffers.values[block], buffers.place)
        """Where the newest key and value go."""
        self.rows, self.seen = 0, 0
        self.lazy_initialization(buffers.keys[block], buffers.values[block])

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What there is to attend to, as views [rows, heads, seen, size]."""
        keys, values, _ = self.into
        return keys[: self.rows, :, : self.seen], values[: self.rows, :, : self.seen]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object):
        """Write one position of the first rows; returns views [rows, heads, seen, size]."""
        keys, values, place = self.into
        keys[: self.rows].index_copy_(2, place, key_states)
        values[: self.rows].index_copy_(2, place, value_states)
        return self.read()

    def get_seq_length(self) -> int:
        return self.seen - 1

    def get_mask_sizes(self, _query_length: int) -> tuple[int, int]:
        return self.seen, 0


@dataclass
class Workspace:
    """The buffers and graphs of one model; empty until answers are first written on a GPU."""

    buffers: Buffers | None = None
    graphs: dict[Hashable, torch.cuda.CUDAGraph] = field(default_factory=dict)
    pool: Any = None
    """The memory that all captured graphs share: one is replayed at a time."""
    prefixes: tuple[tuple, list] | None = None
    """What the trials of the session's active edits make of a prefix, and which edits and prefix these are."""
    attention: str = ""
    """Name of the attention that steps use in the library's table, where it is not the model's own."""
    refused: str = ""
    """Why this model's steps cannot be captured; they are launched one by one then."""

    def fitting(
        self, shapes: list[tuple[tuple[int, int], tuple[int, int]]], rows: int, width: int, like: torch.Tensor
    ) -> Buffers:
        """Buffers for so many rows and positions: those that are there, where they are large enough.

        Args:
            shapes: by block, (heads, size) of keys and of values.
            like: a tensor of the model's type, on its device.
        """
        have = self.buffers
        if have is not None and have.rows >= rows and have.width == width and len(have.keys) == len(shapes):
            return have
        self.release()
        device = like.device

        def numbers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.buffers = Buffers(
            keys=[like.new_zeros(rows, heads, width, size) for (heads, size), _ in shapes],
            values=[like.new_zeros(rows, heads, width, size) for _, (heads, size) in shapes],
            mask=like.new_zeros(rows, 1, 1, width),
            position=numbers(rows),
            newest=numbers(rows),
            trial=numbers(rows),
            place=numbers(1),
            places=torch.arange(width, device=device),
            count=numbers(1),
            written=numbers(width, rows),
        )
        return self.buffers

    def keep(self, key: Hashable, graph: torch.cuda.CUDAGraph) -> None:
        """Remember a captured graph."""
        if len(self.graphs) >= _KEPT_GRAPHS:
            self.graphs.clear()
        self.graphs[key] = graph

    def release(self) -> None:
        """Give the memory back."""
        self.graphs.clear()
        self.buffers = None
        self.prefixes = None
        self.pool = None
