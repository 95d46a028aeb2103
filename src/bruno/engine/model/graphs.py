"""Answers written by captured CUDA graphs: one launch a token for all rows, whatever the model's code costs in Python.

A graph repeats exactly what was launched while it was captured, on the same addresses. So a wave lives in buffers of
fixed size (`workspace.py`): every row has the same place for its newest token, rows that are finished go on writing what
nobody reads, and only every few tokens is the host told what was written. While it reads, the device is already writing
on. When enough rows are finished the others move together and a graph for fewer rows takes over.

What is read of keys and values grows with the answers, in steps of `_STEP` positions, one graph for each.

The class also runs without capturing (on a CPU, or where a model's code cannot be captured): the same steps, launched one
by one. That is how tests hold it to plain generation for every family.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import Cache

from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import decoder_config
from bruno.engine.model.decoding import Started, Written, moves
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.model.passes import logits_of
from bruno.engine.model.prefill import window_of
from bruno.engine.model.prepared import PreparedPrompts
from bruno.engine.model.workspace import Buffers, FixedLayer
from bruno.errors import first_line

_STEP = 32  # positions; a multiple of 8, which the attention kernels want of a mask's rows
_CHUNK = 8  # tokens written before the host is told
_FEWEST = 8  # rows below which nothing is gained by fewer


def capacity_of(positions: int) -> int:
    """The positions that buffers, or a graph, have for so many."""
    return -(-positions // _STEP) * _STEP


class GraphedRows:
    """A wave in fixed buffers; see the module's docstring.

    Args:
        wave: passes that have not run yet: each one's keys and values go straight into the buffers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prepared: PreparedPrompts,
        wave: list[Started],
        longest: int,
        session: EditSession | None,
    ) -> None:
        self._loaded, self._session = loaded, session
        self._owners = [owner for started in wave for owner in started.owners]
        self._live = len(self._owners)
        self._finished: set[tuple[int, int]] = set()
        self._width = max(s.item.mask.shape[1] for s in wave)
        self._left = longest - 1  # tokens still to be written
        self._at = self._width  # host's copy of `place`
        self._counted = 0  # host's copy of `count`
        self._pending: deque[_Chunk] = deque()
        self._shown: list[tuple[int, int]] = []
        if self._session is not None:
            self._session.steady = True
        self._buffers = self._filled(prepared, wave, longest)
        self._active = len(self._owners)  # rows that a step computes
        self._layers = [FixedLayer(self._buffers, block) for block in range(loaded.layers)]
        self._cache = Cache(layers=list(self._layers))
        if self._session is not None:
            self._session.rows_on_device(self._buffers.trial)
        self._tell(self._buffers.newest[None, : self._active])
        self._launch()

    @property
    def rows(self) -> int:
        return self._live

    def tokens(self) -> Sequence[Written]:
        """What the oldest chunk wrote, for the rows that were not finished before it."""
        chunk = self._pending.popleft()
        written = [
            (owner[0], owner[1], tokens)
            for owner, tokens in zip(chunk.owners, chunk.read(), strict=True)
            if owner not in self._finished
        ]
        self._shown = [(trial, prompt) for trial, prompt, _ in written]
        return written

    def drop(self, finished: list[int]) -> None:
        """These rows go on being computed until enough have gone, and are not shown any more."""
        self._finished.update(self._shown[row] for row in finished)
        self._live = len(self._shown) - len(finished)

    def step(self) -> None:
        """Launch the next chunk; the one before it may still be running."""
        self._close_up()
        self._launch()

    def _filled(self, prepared: PreparedPrompts, wave: list[Started], longest: int) -> Buffers:
        """Run the passes and put what they give into the buffers."""
        loaded, prefix, width = self._loaded, prepared.prefix, self._width
        capacity = capacity_of(width + longest)
        buffers: Buffers | None = None
        begin = 0
        for started in wave:
            done = started.run()
            if buffers is None:
                buffers = loaded.workspace.fitting(done.shapes(), len(self._owners), capacity, done.logits)
                buffers.mask.fill_(torch.finfo(buffers.mask.dtype).min)
            end = begin + len(started.owners)
            done.write(buffers.keys, buffers.values, slice(begin, end), prefix, width)
            own = width - started.item.batch.input_ids.shape[1]
            seen = started.mask.bool()
            rows = buffers.mask[begin:end, 0, 0]
            rows[:, :prefix].masked_fill_(seen[:, :prefix], 0)
            rows[:, own:width].masked_fill_(seen[:, prefix:], 0)
            buffers.position[begin:end] = started.last_positions
            buffers.newest[begin:end] = done.logits.argmax(-1)
            buffers.trial[begin:end].copy_(torch.tensor([trial for trial, _ in started.owners]), non_blocking=True)
            begin = end
        if buffers is None:
            raise ValueError("a wave has at least one pass")
        buffers.place.fill_(width)
        buffers.count.zero_()
        return buffers

    def _launch(self) -> None:
        """Write up to `_CHUNK` tokens more, and have them sent to the host when they are there."""
        count = min(_CHUNK, self._left)
        if not count:
            return
        first = self._counted
        for _ in range(count):
            self._step()
        self._left -= count
        self._tell(self._buffers.written[first : self._counted, : self._active])

    def _tell(self, tokens: torch.Tensor) -> None:
        self._pending.append(_Chunk.sent(self._owners[: self._active], tokens))

    def _step(self) -> None:
        """One token for every active row: by a graph; where there is none yet, launched, and captured for the next
        time."""
        rows, seen = self._active, min(capacity_of(self._at + 1), self._buffers.width)
        workspace = self._loaded.workspace
        key = (rows, seen, self._session.signature() if self._session is not None else None)
        graph = workspace.graphs.get(key)
        if graph is not None:
            graph.replay()
        else:
            self._run(rows, seen)  # kernels are compiled and chosen here, which capturing does not allow
            if self._loaded.device.type == "cuda" and not workspace.refused:
                self._capture(key, rows, seen)
        self._at += 1
        self._counted += 1

    def _capture(self, key: tuple, rows: int, seen: int) -> None:
        """Capture a step without running it. A model whose code cannot be captured is remembered as such."""
        workspace = self._loaded.workspace
        workspace.pool = workspace.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=workspace.pool):
                self._run(rows, seen)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            workspace.refused = first_line(error)
            return
        workspace.keep(key, graph)

    def _run(self, rows: int, seen: int) -> None:
        """What one token takes; nothing in it may wait for the device."""
        buffers = self._buffers
        for layer in self._layers:
            layer.rows, layer.seen = rows, seen
        if self._session is not None:
            self._session.rows_on_device(buffers.trial[:rows])
        buffers.position[:rows] += 1
        buffers.mask[:rows].index_fill_(3, buffers.place, 0)
        with _attending(self._loaded):
            logits = logits_of(
                self._loaded,
                buffers.newest[:rows, None],
                self._mask(rows, seen),
                buffers.position[:rows, None],
                self._cache,
                keep=1,
            )
        buffers.newest[:rows] = logits[:, -1].argmax(-1)
        buffers.written.index_copy_(0, buffers.count, buffers.newest[None])
        buffers.place += 1
        buffers.count += 1

    def _mask(self, rows: int, seen: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """What a step's queries see, [rows, 1, 1, seen]; by kind of block where some see only a window.

        A window is counted in places, as the library does; prompts whose rows have a gap are shorter than any window
        (`prefill.with_states`).
        """
        buffers = self._buffers
        whole = buffers.mask[:rows, :, :, :seen]
        config = decoder_config(self._loaded.model)
        window = window_of(config)
        if not window:
            return whole
        near = torch.where(buffers.places[:seen] > buffers.place - window, whole, torch.finfo(whole.dtype).min)
        kinds = set(getattr(config, "layer_types", None) or ())
        return {"full_attention": whole, "sliding_attention": near} if len(kinds) > 1 else near

    def _close_up(self) -> None:
        """Move the live rows together where a step for half as many, or fewer, is enough."""
        live = [row for row, owner in enumerate(self._owners) if owner not in self._finished]
        wanted = max(_FEWEST, 1 << max(0, len(live) - 1).bit_length())
        if not live or wanted >= self._active:
            return
        finished = sorted(set(range(len(self._owners))) - set(live))
        places, sources = moves(finished, len(self._owners))
        buffers = self._buffers
        into, out_of = (torch.tensor(side, device=buffers.mask.device, dtype=torch.long) for side in (places, sources))
        if places:
            for tensor in (
                buffers.mask, buffers.position, buffers.newest, buffers.trial, *buffers.keys, *buffers.values,
            ):  # fmt: skip
                tensor[into] = tensor[out_of]
        for place, source in zip(places, sources, strict=True):
            self._owners[place] = self._owners[source]
        del self._owners[len(live) :]
        self._active = min(wanted, self._active)


@contextmanager
def _attending(loaded: LoadedModel) -> Iterator[None]:
    """The model attends by `workspace.attention` for a while."""
    config, name = decoder_config(loaded.model), loaded.workspace.attention
    before = config._attn_implementation
    if name:
        config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@dataclass(frozen=True)
class _Chunk:
    """Tokens on their way to the host."""

    owners: list[tuple[int, int]]
    tokens: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def sent(cls, owners: list[tuple[int, int]], tokens: torch.Tensor) -> _Chunk:
        """tokens [K, at least as many rows as owners], copied when the device gets there."""
        tokens = tokens[:, : len(owners)]
        if tokens.device.type != "cuda":
            return cls(list(owners), tokens.clone(), None)
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(list(owners), host, arrived)

    def read(self) -> list[list[int]]:
        """Each row's tokens."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tokens.T.tolist()
