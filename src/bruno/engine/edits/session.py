"""Edits on the running model: hooks around the writers and routers, and which trial each row of the batch belongs to.

The only room that attaches hooks for edits (fused experts: `experts.py`). No weight is touched; leaving the session
removes every hook. The tensors of a trial are written in place into buffers that live as long as the session, so captured
CUDA graphs stay valid.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from types import ModuleType, TracebackType
from typing import Self

import torch
from torch import nn

from bruno.engine.edits.algebra import RouterEdit, WriterEdit
from bruno.engine.edits.build import EditBatch
from bruno.engine.edits.experts import ExpertsSite, SplitByTrial
from bruno.engine.edits.rows import Buffers, Factors, Rows
from bruno.engine.model.architectures import Mixture, Writer, find_mixtures
from bruno.errors import BrunoError


class EditSession:
    """Holds the hooks while a search runs::

        with EditSession(loaded.writers, max_trials=8) as session:
            session.write(build_edits(trials, directions, loaded.writers, rules))
            answers = generate(loaded, prepared, session=session, max_new_tokens=100)
            session.off()   # the base model again

    Args:
        writers: from `architectures.find_writers`, in that order.
        max_trials: the largest T that will be written.
    """

    def __init__(self, writers: Sequence[Writer], max_trials: int = 8) -> None:
        self.max_trials = max_trials
        self._rows = Rows()
        self._sites = [
            ExpertsSite(writer, self._rows, max_trials) if writer.experts else _Site(writer, self._rows, max_trials)
            for writer in writers
        ]
        self._by_module = {writer.module: site for writer, site in zip(writers, self._sites, strict=True)}
        mixtures = find_mixtures(writers)
        self._routers = {mixture.layer: _RouterSite(mixture, self._rows, max_trials) for mixture in mixtures}
        self._splits = [SplitByTrial(mixture, self._rows) for mixture in mixtures if not mixture.fused]
        self._first_layer: tuple[int, ...] = ()
        self.written = 0
        """How often edits have been written: what was computed with them holds until it changes."""
        self.steady = any(next(writer.module.parameters()).is_cuda for writer in writers)
        """Whether writers that a batch leaves alone keep an edit that does nothing instead of none: what is launched is
        then the same for every batch, as a captured graph needs it."""

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
            edit = batch.edits.get(index)
            site.write(edit, batch.trials)
            if edit is None and self.steady and isinstance(site, _Site):
                like = self._like(site.component, batch)
                if like is not None:
                    site.buffers.neutral(like, site.inputs)
        for layer, site in self._routers.items():
            site.write(batch.routers.get(layer), batch.trials)
        self._first_layer = batch.first_layer
        self.written += 1
        self.rows_of(0)

    def _like(self, component: str, batch: EditBatch) -> WriterEdit | None:
        """An edit of the batch around another writer of the component, or else around any, to do nothing like it."""
        known = [
            (site.component == component, edit)
            for index, edit in batch.edits.items()
            if isinstance(site := self._sites[index], _Site) and edit.input_read is None
        ]
        return max(known, key=lambda each: each[0])[1] if known else None

    def rows(self, trial_of_row: torch.Tensor) -> None:
        """Say which trial each row of the following forward passes belongs to: LongTensor [B], values below `trials`.

        Rows are sequences: all positions of a row, padding included, belong to its trial. Inside a mixture of experts
        tokens come as [B * S] in row order, and are told apart by it.
        """
        low, high = (int(v) for v in torch.aminmax(trial_of_row))
        if low < 0 or high >= self.trials:
            raise BrunoError(f"Rows name trials {low} to {high}, but {self.trials} are active")
        self._rows.set(low if low == high else trial_of_row)

    def rows_on_device(self, trial_of_row: torch.Tensor) -> None:
        """As `rows`, with a tensor on the model's device that is not read here: its values may change later on."""
        self._rows.set(trial_of_row)

    def signature(self) -> Hashable:
        """What the hooks launch, and on which memory: a captured graph is right for as long as this is the same."""
        return tuple(site.buffers.signature() for site in (*self._sites, *self._routers.values()))

    def factors(self, writer: nn.Module) -> Factors | None:
        """The active edit of a writer, for those who apply it themselves; None where only the writer's hooks can."""
        site = self._by_module.get(writer)
        return site.factors() if isinstance(site, _Site) else None

    def rows_of(self, trial: int) -> None:
        """All rows of the following passes belong to one trial: its tensors broadcast, nothing is gathered."""
        self._rows.set(trial)

    def off(self) -> None:
        """The base model again; hooks stay attached and do nothing."""
        self._first_layer = ()
        self._rows.set(0)
        for site in (*self._sites, *self._routers.values()):
            site.buffers.active = False

    def __enter__(self) -> Self:
        try:
            for site in (*self._sites, *self._routers.values(), *self._splits):
                site.attach()
        except BrunoError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for site in (*self._sites, *self._routers.values(), *self._splits):
            site.detach()
        self.off()


_fused: list[ModuleType] = []  # `edits.fused`, once it has been tried


def try_kernels(device: torch.device) -> str:
    """Compile the hooks' kernels (`edits.fused`) for a GPU, and use them from now on; why not, or ""."""
    try:
        module = importlib.import_module("bruno.engine.edits.fused")
        module.try_out(device)
    except Exception as error:  # noqa: BLE001  (no Triton, no compiler, a device it does not know: each a reason)
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    _fused[:] = [module]
    return ""


def fused_kernels(tensor: torch.Tensor) -> ModuleType | None:
    """The kernels where they apply, None where plain torch does the work."""
    return _fused[0] if _fused and tensor.is_cuda else None


class _Hooked:
    """Something with hooks on one module and buffers for what they apply."""

    def __init__(self, module: nn.Module, rows: Rows, max_trials: int) -> None:
        self.module = module
        self.buffers = Buffers(rows, max_trials, next(module.parameters()).device)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def write(self, edit: WriterEdit | RouterEdit | None, trials: int) -> None:
        self.buffers.write(edit, trials)

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _RouterSite(_Hooked):
    """x' = x + (x read^T) write in front of one router, whose forward may do more than its product with W_g."""

    def __init__(self, mixture: Mixture, rows: Rows, max_trials: int) -> None:
        super().__init__(mixture.router, rows, max_trials)

    def attach(self) -> None:
        self._handles = [self.module.register_forward_pre_hook(self._before)]

    def _before(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self.buffers.active:
            return None
        x = args[0]
        read, write = self.buffers.of_rows("read"), self.buffers.of_rows("write")  # [B or 1, k, d]
        rows = x.reshape(read.shape[0], -1, x.shape[-1]).float()
        rows = torch.baddbmm(rows, torch.bmm(rows, read.transpose(1, 2)), write)
        return rows.to(x.dtype).view(x.shape), *args[1:]


class _Site(_Hooked):
    """The hooks and buffers of a writer with one weight."""

    def __init__(self, writer: Writer, rows: Rows, max_trials: int) -> None:
        super().__init__(writer.module, rows, max_trials)
        self.component, self.inputs = writer.component, writer.weight_shape[1]

    def attach(self) -> None:
        self._handles = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after),
        ]

    def factors(self) -> Factors | None:
        """What is applied around the writer; None for an edit that also reads the input's single columns (heads)."""
        return None if self.buffers.has("input_read") else self.buffers.factors()

    def _before(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not self.buffers.has("input_scale"):
            return None
        x = args[0]
        if (kernels := fused_kernels(x)) is not None:
            rows = self.buffers.rows.on(x.device)
            return kernels.scaled(x, self.buffers.tensor("input_scale"), rows), *args[1:]
        scale = self.buffers.of_rows("input_scale")  # [B or 1, d_in]
        rows = x.reshape(scale.shape[0], -1, x.shape[-1])
        # fp32 times bf16 is fp32: the scale is close to 1 and would be lost in bf16
        return (rows * scale[:, None]).to(x.dtype).view(x.shape), *args[1:]

    def _after(self, _module: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
        """`args` is what the module was given: the input with its scale already on it."""
        if not self.buffers.active:
            return None
        if not self.buffers.has("input_read") and (kernels := fused_kernels(y)) is not None:
            names = ("read", "write", "output_scale")
            tensors = (self.buffers.tensor(name) if self.buffers.has(name) else None for name in names)
            return kernels.projected(y, *tensors, self.buffers.rows.on(y.device))
        read, write = self.buffers.of_rows("read"), self.buffers.of_rows("write")  # [B or 1, k, d]
        rows = y.reshape(read.shape[0], -1, y.shape[-1]).float()
        if read.shape[1]:
            rows = torch.baddbmm(rows, torch.bmm(rows, read.transpose(1, 2)), write)
        if self.buffers.has("input_read"):
            x = args[0].reshape(read.shape[0], -1, args[0].shape[-1]).float()
            along = torch.bmm(x, self.buffers.of_rows("input_read").transpose(1, 2))
            rows = torch.baddbmm(rows, along, self.buffers.of_rows("input_write"))
        if self.buffers.has("output_scale"):
            rows = rows * self.buffers.of_rows("output_scale")[:, None]
        return rows.to(y.dtype).view(y.shape)
