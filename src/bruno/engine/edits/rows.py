"""Which trial each row belongs to, and the buffers that hold the trials' tensors. Shared by all sites of a session."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from bruno.engine.edits.algebra import RouterEdit, WriterEdit


class Rows:
    """The trial of each row of the running pass: one number for all, or a LongTensor [B] kept on every device in use."""

    def __init__(self) -> None:
        self.value: torch.Tensor | int = 0
        self._placed: dict[torch.device, torch.Tensor] = {}

    def set(self, value: torch.Tensor | int) -> None:
        self.value = value
        self._placed = {}

    def on(self, device: torch.device) -> torch.Tensor | int:
        if isinstance(self.value, int):
            return self.value
        if device not in self._placed:
            self._placed[device] = self.value.to(device, non_blocking=True)  # a wait would cost more than a pass
        return self._placed[device]

    def of_tokens(self, tokens: int, device: torch.device) -> torch.Tensor | int:
        """The trial of each of the B * S tokens of a pass, [tokens], in row order; one number where all rows share it."""
        rows = self.on(device)
        return rows if isinstance(rows, int) else rows.repeat_interleave(tokens // len(rows))

    @contextmanager
    def all_of(self, trial: int) -> Iterator[None]:
        """For a while every row belongs to one trial."""
        before, placed = self.value, self._placed
        self.set(trial)
        try:
            yield
        finally:
            self.value, self._placed = before, placed


class Factors(NamedTuple):
    """An active edit of one writer, of all trials, and the trial of each row [B], or of all.

    input_scale [T, d_in], read and write [T, k, d], output_scale [T, d]; fp32. None where the edit has no such part.
    """

    input_scale: torch.Tensor | None
    read: torch.Tensor | None
    write: torch.Tensor | None
    output_scale: torch.Tensor | None
    rows: torch.Tensor | int


NONE = Factors(None, None, None, None, 0)
"""No edit."""


class Buffers:
    """The tensors of the active edit of one site, written in place."""

    def __init__(self, rows: Rows, max_trials: int, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.active = False
        self._neutral = False
        self._max_trials = max_trials
        self._tensors: dict[str, torch.Tensor] = {}
        self._present: frozenset[str] = frozenset()

    def write(self, edit: WriterEdit | RouterEdit | None, trials: int) -> None:
        """Copy an edit into the buffers; allocate them where this is the first, or of another rank."""
        self.active = edit is not None
        if edit is None:
            return
        self._neutral = False
        present = {name: value for name, value in vars(edit).items() if value is not None}
        for name, value in present.items():
            buffer = self._tensors.get(name)
            if buffer is None or buffer.shape[1:] != value.shape[1:]:
                buffer = value.new_zeros((self._max_trials, *value.shape[1:]), device=self.device)
                self._tensors[name] = buffer
            buffer[:trials].copy_(value)
        self._present = frozenset(present)

    def neutral(self, like: WriterEdit, inputs: int) -> None:
        """An edit that does nothing, of the kind that was last written, or else of the kind of another writer's.

        Args:
            inputs: d_in of this writer.
        """
        if not self._present:
            given = {name: value for name, value in vars(like).items() if value is not None}
            for name, value in given.items():
                shape = (*value.shape[1:-1], inputs if name in ("input_scale", "input_read") else value.shape[-1])
                self._tensors[name] = value.new_zeros((self._max_trials, *shape), device=self.device)
            self._present = frozenset(given)
        if not self._neutral:
            for name in self._present:
                self._tensors[name].fill_(1.0 if name in ("input_scale", "output_scale") else 0.0)
        self.active = self._neutral = True

    def signature(self) -> Hashable:
        """What an active edit consists of, and where it lies."""
        return self.active and tuple(sorted((name, self._tensors[name].data_ptr()) for name in self._present))

    def has(self, name: str) -> bool:
        """Whether the active edit has this tensor."""
        return self.active and name in self._present

    def tensor(self, name: str) -> torch.Tensor:
        """The whole buffer, all trials."""
        return self._tensors[name]

    def factors(self) -> Factors:
        """The active edit, for all trials, and whose each row is."""
        if not self.active:
            return NONE
        parts = {name: self._tensors[name] if self.has(name) else None for name in Factors._fields if name != "rows"}
        return Factors(**parts, rows=self.rows.on(self.device))

    def of_rows(self, name: str) -> torch.Tensor:
        """A buffer as the rows of this pass need it: [B, ...], or [1, ...] when all rows share a trial."""
        buffer, rows = self._tensors[name], self.rows.on(self.device)
        return buffer[rows : rows + 1] if isinstance(rows, int) else buffer[rows]
