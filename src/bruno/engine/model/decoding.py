"""Answers being written: the rows of a wave, one token further with each step. Two ways that every model can go.

`GrowingRows` puts rows of several passes into one cache and lets finished ones leave at once. `WholeRows` serves models
whose cache cannot be taken apart. A third way, captured CUDA graphs, is in `graphs.py`; all three are read by
`generate.py` through the same four members (`rows`, `tokens`, `drop`, `step`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from bruno.engine.edits.session import EditSession
from bruno.engine.model.cache import decoding_cache, widened
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.passes import logits_of
from bruno.engine.model.prepared import Pass, PreparedBatch, PreparedPrompts


@dataclass(frozen=True)
class Started:
    """Some prompts for some trials, about to be answered, and the pass over them (`run`, once)."""

    trials: Sequence[int]
    item: PreparedBatch
    run: Callable[[], Pass]

    @property
    def owners(self) -> list[tuple[int, int]]:
        """(trial, prompt) of each row: all prompts of the first trial, then of the next."""
        return [(trial, int(i)) for trial in self.trials for i in self.item.batch.indices]

    @property
    def mask(self) -> torch.Tensor:
        """[rows, P + S]."""
        return self.item.mask.repeat(len(self.trials), 1)

    @property
    def last_positions(self) -> torch.Tensor:
        """[rows], of the prompts' last tokens."""
        return self.item.batch.position_ids[:, -1].repeat(len(self.trials))


Written = tuple[int, int, Sequence[int]]
"""(trial, prompt, its newest tokens)."""


class Decoding(Protocol):
    """Rows of answers being written."""

    @property
    def rows(self) -> int:
        """How many answers are still being written."""
        ...

    def tokens(self) -> Sequence[Written]:
        """What was written since the last time, for each live row, in the order that `drop` counts them."""
        ...

    def drop(self, finished: list[int]) -> None:
        """These rows of the last `tokens()` are finished and are not read any more; rising, no row twice."""
        ...

    def step(self) -> None:
        """Write on, for every live row."""
        ...


class GrowingRows:
    """Rows 0 to `rows` - 1 of every tensor are the live ones; the cache grows by one position a step."""

    def __init__(
        self,
        loaded: LoadedModel,
        prepared: PreparedPrompts,
        wave: list[Started],
        longest: int,
        session: EditSession | None,
    ) -> None:
        self._loaded, self._session = loaded, session
        passes = [started.run() for started in wave]
        self.owners = [owner for started in wave for owner in started.owners]
        self.rows = len(self.owners)
        prefix = prepared.prefix
        width = max(s.mask.shape[1] for s in wave)
        self._width = width
        device = loaded.device
        self._mask = torch.zeros(self.rows, width + longest, dtype=torch.long, device=device)
        self._mask[:, width:] = 1
        self._mask[:, :width] = torch.cat([widened(s.mask[:, None, :, None], prefix, width)[:, 0, :, 0] for s in wave])
        self._position = torch.cat([s.last_positions for s in wave])
        self._next = torch.cat([done.logits.argmax(-1) for done in passes])
        self._cache, self._layers = decoding_cache([done.blocks for done in passes], prefix, width, width + longest)

    def tokens(self) -> Sequence[Written]:
        """The newest token of each live row."""
        newest = self._next[: self.rows].tolist()
        return [(trial, prompt, (token,)) for (trial, prompt), token in zip(self.owners, newest, strict=True)]

    def drop(self, finished: list[int]) -> None:
        """Live rows beyond the new end move into the places of finished ones before it."""
        places, sources = moves(finished, self.rows)
        self.rows -= len(finished)
        into = torch.tensor(places, device=self._mask.device, dtype=torch.long)
        out_of = torch.tensor(sources, device=self._mask.device, dtype=torch.long)
        if finished and self.rows:
            for tensor in (self._mask, self._position, self._next):
                tensor[into] = tensor[out_of]
            for layer in self._layers:
                layer.move(out_of, into, self.rows)
        for place, source in zip(places, sources, strict=True):
            self.owners[place] = self.owners[source]
        del self.owners[self.rows :]

    def step(self) -> None:
        """One more token for every live row."""
        if self._session is not None:
            self._session.rows(torch.tensor([trial for trial, _ in self.owners]))
        live = slice(0, self.rows)
        self._width += 1
        self._position[live] += 1
        logits = logits_of(
            self._loaded,
            self._next[live, None],
            self._mask[live, : self._width],
            self._position[live, None],
            self._cache,
            keep=1,
        )
        self._next[live] = logits[:, -1].argmax(-1)


def moves(finished: list[int], rows: int) -> tuple[list[int], list[int]]:
    """Which rows move where so that the live ones are the first again: (places that finished ones leave, their new
    rows)."""
    gone = set(finished)
    kept = rows - len(gone)
    return [row for row in range(kept) if row in gone], [row for row in range(kept, rows) if row not in gone]


class WholeRows:
    """Answers of one model whose cache cannot be taken apart: each pass keeps its rows until all of them have ended.

    With `own`, every pass goes on in the cache that the model made for it; otherwise all positions are computed again
    for every token.
    """

    def __init__(self, loaded: LoadedModel, wave: list[Started], session: EditSession | None, *, own: bool) -> None:
        self._loaded, self._own, self._session = loaded, own, session
        self._passes = [_Rows(s.trials[0], s.run(), s.item) for s in wave]
        self._live = [(each, row) for each in self._passes for row in range(len(each.next))]

    @property
    def rows(self) -> int:
        return len(self._live)

    def tokens(self) -> Sequence[Written]:
        """The newest token of each live row."""
        newest = {id(each): each.next.tolist() for each in self._passes}
        return [(each.trial, each.prompts[row], (newest[id(each)][row],)) for each, row in self._live]

    def drop(self, finished: list[int]) -> None:
        """These live rows are not read any more."""
        gone = set(finished)
        self._live = [live for row, live in enumerate(self._live) if row not in gone]

    def step(self) -> None:
        """One more token for every row of the passes that have a live one."""
        needed = {id(each) for each, _ in self._live}
        self._passes = [each for each in self._passes if id(each) in needed]
        for each in self._passes:
            if self._session is not None:
                self._session.rows_of(each.trial)
            each.append(each.next)
            ids, positions = (each.ids[:, -1:], each.positions[:, -1:]) if self._own else (each.ids, each.positions)
            logits = logits_of(self._loaded, ids, each.mask, positions, each.cache if self._own else None, keep=1)
            each.next = logits[:, -1].argmax(-1)


class _Rows:
    """The rows of one pass in `WholeRows`: everything they hold so far, [B, S so far]."""

    def __init__(self, trial: int, done: Pass, item: PreparedBatch) -> None:
        self.trial, self.cache = trial, done.own
        self.prompts = item.batch.indices.tolist()
        self.ids, self.mask, self.positions = item.batch.input_ids, item.mask, item.batch.position_ids
        self.next = done.logits.argmax(-1)

    def append(self, tokens: torch.Tensor) -> None:
        """A token [B] for each row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], dim=1)
