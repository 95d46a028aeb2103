"""Edits on the running model: forward hooks around the writers, and which trial each row of the batch belongs to.

The only module that attaches hooks for edits. No weight is touched; leaving the session removes every hook. The tensors
of a trial are written in place into buffers that live as long as the session, so captured CUDA graphs stay valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from bruno.engine.edits.build import EditBatch, WriterEdit
from bruno.engine.model.architectures import Writer
from bruno.errors import BrunoError


class EditSession:
    """Holds the hooks while a search runs::

        with EditSession(loaded.writers, max_trials=8) as session:
            session.write(build_edits(trials, directions, loaded.writers, "column"))
            answers = generate(loaded, prepared, session=session, max_new_tokens=100)
            session.off()   # the base model again

    Args:
        writers: from `architectures.find_writers`, in that order.
        max_trials: the largest T that will be written.
    """

    def __init__(self, writers: Sequence[Writer], max_trials: int = 8) -> None:
        self.max_trials = max_trials
        self._sites = [_Site(writer, max_trials) for writer in writers]
        self._row_count = 0
        self._first_layer: tuple[int, ...] = ()

    @property
    def trials(self) -> int:
        """T of the edits now active; 0 when off."""
        return len(self._first_layer)

    @property
    def first_layer(self) -> tuple[int, ...]:
        """Lowest edited block per trial, as in `EditBatch.first_layer`; empty when off."""
        return self._first_layer

    def write(self, batch: EditBatch) -> None:
        """Make a batch of trials active, in place. Until `rows` is called every row belongs to trial 0."""
        if not 1 <= batch.trials <= self.max_trials:
            raise BrunoError(f"{batch.trials} trials do not fit an edit session made for {self.max_trials}")
        for index, site in enumerate(self._sites):
            site.write(batch.edits.get(index), batch.trials)
        self._first_layer = batch.first_layer
        self.rows_of(0)

    def rows(self, trial_of_row: torch.Tensor) -> None:
        """Say which trial each row of the following forward passes belongs to: LongTensor [B], values below `trials`."""
        low, high = (int(v) for v in torch.aminmax(trial_of_row))
        if low < 0 or high >= self.trials:
            raise BrunoError(f"Rows name trials {low} to {high}, but {self.trials} are active")
        if low == high:
            self.rows_of(low)
            return
        for site in self._sites:
            site.rows = trial_of_row.to(site.device)

    def rows_of(self, trial: int) -> None:
        """All rows of the following passes belong to one trial: its tensors broadcast, nothing is gathered."""
        for site in self._sites:
            site.rows = trial

    def off(self) -> None:
        """The base model again; hooks stay attached and do nothing."""
        self._first_layer = ()
        for site in self._sites:
            site.active = False

    def __enter__(self) -> Self:
        for site in self._sites:
            site.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for site in self._sites:
            site.detach()
        self.off()


class _Site:
    """The hooks and buffers of one writer."""

    def __init__(self, writer: Writer, max_trials: int) -> None:
        self.module = writer.module
        self.device = next(writer.module.parameters()).device
        self.max_trials = max_trials
        self.active = False
        self.rows: torch.Tensor | int = 0
        self._buffers: dict[str, torch.Tensor] = {}
        self._present: frozenset[str] = frozenset()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self) -> None:
        self._handles = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def write(self, edit: WriterEdit | None, trials: int) -> None:
        """Copy an edit into the buffers; allocate them where this is the first, or of another rank."""
        self.active = edit is not None
        if edit is None:
            return
        tensors = {name: value for name, value in vars(edit).items() if value is not None}
        for name, value in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape[1:] != value.shape[1:]:
                buffer = value.new_zeros((self.max_trials, *value.shape[1:]))
                self._buffers[name] = buffer
            buffer[:trials].copy_(value)
        self._present = frozenset(tensors)

    def _of_rows(self, name: str) -> torch.Tensor:
        """A buffer as the rows of this pass need it: [B, ...], or [1, ...] when all rows share a trial."""
        buffer = self._buffers[name]
        return buffer[self.rows : self.rows + 1] if isinstance(self.rows, int) else buffer[self.rows]

    def _before(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self.active or "input_scale" not in self._present:
            return None
        x = args[0]
        scale = self._of_rows("input_scale")  # [B or 1, d_in]
        rows = x.reshape(scale.shape[0], -1, x.shape[-1])
        # fp32 times bf16 is fp32: the scale is close to 1 and would be lost in bf16
        return (rows * scale[:, None]).to(x.dtype).view(x.shape), *args[1:]

    def _after(self, _module: nn.Module, _args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
        if not self.active:
            return None
        read, write = self._of_rows("read"), self._of_rows("write")  # [B or 1, k, d]
        rows = y.reshape(read.shape[0], -1, y.shape[-1]).float()
        rows = torch.baddbmm(rows, torch.bmm(rows, read.transpose(1, 2)), write)
        if "output_scale" in self._present:
            rows = rows * self._of_rows("output_scale")[:, None]
        return rows.to(y.dtype).view(y.shape)
