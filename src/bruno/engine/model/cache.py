"""What each block keeps of the positions before: keys and values, or the state of linear attention; caches made of them.

The library's caches are built for one batch that only grows. A search needs three things more: to start many trials from
the same kept states, to put rows of several passes into one batch, and to let rows leave it. So what a cache holds is
taken out as plain tensors (`held`), and caches are made from such tensors (`cache_of`, `decoding_cache`). Models whose
caches hold anything else are told apart by `why_not_blocks`. Pure tensors; runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer, get_layer_types_and_kwargs

# Attention of any reach is kept whole: its mask knows the window, and a row can be put beside a longer one.
_KEYS_AND_VALUES = frozenset({"full_attention", "sliding_attention"})
_RECURRENT = frozenset({"linear_attention"})


@dataclass(frozen=True)
class BlockCache:
    """What one block keeps of a batch of B rows.

    Attributes:
        positions: one entry for each position: keys and values, [B, heads, S, size] (the two sizes may differ). Empty
            for a block without attention.
        summary: one entry for each row, whatever its length: linear attention's convolution and recurrent states,
            [B, ...]. Empty for a block with attention.
    """

    positions: tuple[torch.Tensor, ...] = ()
    summary: tuple[torch.Tensor, ...] = ()

    def rows(self, part: slice) -> BlockCache:
        """Some of the rows, as views."""
        return BlockCache(tuple(t[part] for t in self.positions), tuple(t[part] for t in self.summary))

    def after(self, prefix: int) -> BlockCache:
        """Without the first `prefix` positions, as copies."""
        return BlockCache(tuple(t[:, :, prefix:].contiguous() for t in self.positions), self.summary)

    def bytes(self) -> int:
        """Memory of all its tensors."""
        return sum(t.nbytes for t in (*self.positions, *self.summary))


def why_not_blocks(config) -> str:
    """Why caches of this (decoder's) config cannot be taken apart by block; "" when they can."""
    kinds, arguments = get_layer_types_and_kwargs(config)
    strange = sorted(set(kinds) - _KEYS_AND_VALUES - _RECURRENT)
    if strange:
        return f"its {', '.join(strange)} blocks keep more than keys and values"
    if any(each.get("number_of_states", 1) != 1 for each in arguments):
        return "its linear attention keeps several states in one block"
    return ""


def is_recurrent(config) -> bool:
    """Whether some blocks see earlier positions only through a running state. Such a state counts padding inside a row
    (in front of it, it is still zero)."""
    return not _RECURRENT.isdisjoint(get_layer_types_and_kwargs(config)[0])


class PromptLayer(DynamicLayer):
    """One block's keys and values of a pass over prompts: the prefix of each trial, which its rows share, and the rows'
    own positions behind it, which come once and are put where they stay.

    Args:
        prefixes: for each trial, keys and values [1, heads, P, size]; none for a pass without a prefix.
        rows: of each trial.
    """

    def __init__(self, prefixes: Sequence[tuple[torch.Tensor, ...]], rows: int) -> None:
        super().__init__()
        self._prefixes, self._rows = prefixes, rows

    @property
    def prefix(self) -> int:
        return self._prefixes[0][0].shape[2] if self._prefixes else 0

    def room(
        self, keys: tuple[int, int], values: tuple[int, int], shape: tuple[int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where own keys and values go, [B, heads, S, size]; None when they have come already.

        Args:
            keys, values: (heads, size).
            shape: (B, S).
            like: a tensor of their type, on their device.
        """
        if self.is_initialized:
            return None
        rows, own = shape
        start = self.prefix
        both = [like.new_empty(rows, heads, start + own, size) for heads, size in (keys, values)]
        for side, whole in enumerate(both):
            if start:
                before = [each[side] for each in self._prefixes]
                trials = before[0] if len(before) == 1 else torch.cat(before)
                whole.unflatten(0, (len(trials), self._rows))[:, :, :, :start] = trials[:, None]
        self.lazy_initialization(both[0], both[1])
        self.keys, self.values = both
        return both[0][:, :, start:], both[1][:, :, start:]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **options: object):
        """Put own positions behind the prefix; returns all, [B, heads, P + S, size]."""
        rows, heads, own, size = key_states.shape
        rooms = self.room((heads, size), (value_states.shape[1], value_states.shape[3]), (rows, own), key_states)
        if rooms is None:
            return super().update(key_states, value_states, *args, **options)
        rooms[0].copy_(key_states)
        rooms[1].copy_(value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.prefix if self.keys is None else self.keys.shape[2]


def cache_of(config, prefixes: Sequence[Sequence[BlockCache]] = (), rows: int = 0) -> Cache:
    """A cache for a pass: empty, or beginning with prefixes (of one row), each one for `rows` rows."""
    kinds, _ = get_layer_types_and_kwargs(config)
    layers: list = []
    for index, kind in enumerate(kinds):
        before = [blocks[index].positions for blocks in prefixes if blocks and blocks[index].positions]
        layers.append(LinearAttentionLayer() if kind in _RECURRENT else PromptLayer(before, rows))
    return Cache(layers=layers)


def held(cache: Cache, start: int = 0) -> list[BlockCache]:
    """What a cache holds for the blocks from `start` on. (Below it, a pass that began there may have left nothing.)"""
    return [_held(layer) for layer in cache.layers[start:]]


def _held(layer) -> BlockCache:
    if isinstance(layer, LinearAttentionLayer):
        states = (layer.conv_states[0], layer.recurrent_states[0])
        return BlockCache(summary=tuple(state for state in states if state is not None))
    return BlockCache(positions=(layer.keys, layer.values))


def joined(prefix: Sequence[BlockCache], own: Sequence[BlockCache], rows: int) -> list[BlockCache]:
    """Positions of the prefix (one row) and of the rows' own, one after the other."""
    if not prefix:
        return list(own)
    return [
        BlockCache(
            tuple(
                torch.cat([p.expand(rows, -1, -1, -1), o], dim=2)
                for p, o in zip(before.positions, after.positions, strict=True)
            )
        )
        for before, after in zip(prefix, own, strict=True)
    ]


def widened(tensor: torch.Tensor, prefix: int, width: int) -> torch.Tensor:
    """[B, H, P + S, D] with zeros between prefix and the rest, so that the third axis is `width` long."""
    missing = width - tensor.shape[2]
    if not missing:
        return tensor
    gap = tensor.new_zeros(*tensor.shape[:2], missing, tensor.shape[3])
    return torch.cat([tensor[:, :, :prefix], gap, tensor[:, :, prefix:]], dim=2)


class Slab(DynamicLayer):
    """One block's keys and values in a tensor of full length from the start, written in place.

    The library's dynamic layer copies everything it holds for every token. Rows can leave: `move` fills their places.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        super().__init__()
        shape = (*keys.shape[:2], capacity, keys.shape[3])
        self._keys, self._values = keys.new_empty(shape), values.new_empty((*shape[:3], values.shape[3]))
        self.length = keys.shape[2]
        self._keys[:, :, : self.length], self._values[:, :, : self.length] = keys, values
        self.lazy_initialization(keys, values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object):
        """Write new positions; returns views [B, heads, length so far, head_dim]."""
        rows, end = key_states.shape[0], self.length + key_states.shape[2]
        self._keys[:rows, :, self.length : end] = key_states
        self._values[:rows, :, self.length : end] = value_states
        self.length = end
        return self._keys[:rows, :, :end], self._values[:rows, :, :end]

    def move(self, sources: torch.Tensor, places: torch.Tensor, _kept: int) -> None:
        """Rows `places` become copies of rows `sources`."""
        if not len(places):
            return
        sources, places = sources.to(self._keys.device), places.to(self._keys.device)
        self._keys[places, :, : self.length] = self._keys[sources, :, : self.length]
        self._values[places, :, : self.length] = self._values[sources, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0


class RecurrentSlab(LinearAttentionLayer):
    """One block's linear-attention states, which the library updates in place for the rows there are."""

    def __init__(self, *states: torch.Tensor) -> None:
        super().__init__()
        self.update_conv_state(states[0])
        if len(states) > 1:
            self.update_recurrent_state(states[1])

    def move(self, sources: torch.Tensor, places: torch.Tensor, kept: int) -> None:
        """Rows `places` become copies of rows `sources`, and only the first `kept` rows stay."""
        order = torch.arange(kept, device=sources.device)
        order[places] = sources
        self.reorder_cache(order)  # type: ignore[arg-type] - any tensor of row numbers


def decoding_cache(
    passes: Sequence[Sequence[BlockCache]], prefix: int, width: int, capacity: int
) -> tuple[Cache, list[Slab | RecurrentSlab]]:
    """The rows of several passes in one cache that holds `capacity` positions.

    Args:
        passes: for each pass, its blocks; rows are laid out prefix, gap, own positions, to `width` in all.

    Returns:
        The cache, and its layers, whose `move` lets rows leave.
    """
    layers: list[Slab | RecurrentSlab] = []
    for blocks in zip(*passes, strict=True):
        if blocks[0].summary:
            layers.append(RecurrentSlab(*map(torch.cat, zip(*(block.summary for block in blocks), strict=True))))
        else:
            keys, values = (
                torch.cat([widened(block.positions[side], prefix, width) for block in blocks]) for side in (0, 1)
            )
            layers.append(Slab(keys, values, capacity))
    return Cache(layers=list(layers)), layers
