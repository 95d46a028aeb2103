"""Edits inside mixtures of experts: fused experts by an implementation of our own, separate ones trial by trial.

The library dispatches the forward of fused experts by name (`transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS`). A
session names ours while it lasts; modules without an active edit go to the implementation that was there before, so the
base model stays what it was to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear

from bruno.engine.edits.algebra import WriterEdit
from bruno.engine.edits.rows import Buffers, Rows
from bruno.engine.model.architectures import Mixture, Writer
from bruno.errors import BrunoError

_NAME = "bruno_edits"
_sites: dict[nn.Module, ExpertsSite] = {}  # those of the sessions that are open


class ExpertsSite:
    """The edit of one module of fused experts."""

    def __init__(self, writer: Writer, rows: Rows, max_trials: int) -> None:
        self.module = writer.module
        self.buffers = Buffers(rows, max_trials, next(writer.module.parameters()).device)
        self.before: str | None = None
        self._config = attrgetter("config")(writer.module)
        if getattr(writer.module, "has_post_expert_norm", False):
            raise BrunoError(f"{writer.name} norms each expert's output, which edits do not know")

    def write(self, edit: WriterEdit | None, trials: int) -> None:
        self.buffers.write(edit, trials)

    def attach(self) -> None:
        """Name our implementation; blocks share a configuration, so the first of them does it for all."""
        if self.module in _sites:
            raise BrunoError("A model's experts take part in one edit session at a time")
        current = self._config._experts_implementation
        others = (site for site in _sites.values() if site._config is self._config)
        self.before = next((site.before for site in others), None) if current == _NAME else current
        _sites[self.module] = self
        self._config._experts_implementation = _NAME

    def detach(self) -> None:
        if _sites.get(self.module) is self:
            del _sites[self.module]
            self._config._experts_implementation = self.before

    def stock(self, *args: torch.Tensor) -> torch.Tensor:
        """What the module does without us."""
        eager = type(self.module).forward.__wrapped__  # under the library's dispatching decorator
        return ALL_EXPERTS_FUNCTIONS.get_interface(self.before or "eager", eager)(self.module, *args)


def _forward(module: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The registered implementation: hidden [N, d], chosen experts [N, K] and their shares [N, K] -> [N, d]."""
    site = _sites[module]
    if not site.buffers.active:
        return site.stock(hidden, chosen, shares)
    return _edited(site, hidden, chosen, shares)


ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)


@dataclass(frozen=True)
class _Pairs:
    """The N * K pairs of a token and an expert that serves it, sorted by expert.

    Attributes:
        experts: [N * K], rising.
        trials: of each pair [N * K], or one number for all.
        ends: [E] int32, where each expert's pairs end.
    """

    experts: torch.Tensor
    trials: torch.Tensor | int
    ends: torch.Tensor

    def of(self, buffer: torch.Tensor, by_expert: int) -> torch.Tensor:
        """The part of a buffer [T, (E,) ...] for each pair; `by_expert` is its rank with an expert axis. Without one and
        with one trial it is a single part, [1, ...]."""
        if buffer.dim() == by_expert:
            return buffer[self.trials, self.experts]
        return buffer[self.trials : self.trials + 1] if isinstance(self.trials, int) else buffer[self.trials]


def _edited(site: ExpertsSite, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """What the library's grouped implementation computes, with the edit around each expert's down projection."""
    module, buffers = site.module, site.buffers
    count, top = chosen.shape
    experts, order = torch.sort(chosen.reshape(-1), stable=True)
    trials = buffers.rows.of_tokens(count, hidden.device)
    trials = trials if isinstance(trials, int) else trials[order // top]
    numbers = torch.arange(attrgetter("num_experts")(module), device=experts.device)
    pairs = _Pairs(experts, trials, torch.searchsorted(experts, numbers, right=True).to(torch.int32))
    inner = _linear(module, "gate_up_proj", hidden[order // top], pairs)
    inner = attrgetter("_apply_gate")(module)(inner)  # [N * K, d_ff]
    if buffers.has("input_scale"):
        inner = (inner * pairs.of(buffers.tensor("input_scale"), 3)).to(inner.dtype)
    out = _linear(module, "down_proj", inner, pairs).float()  # [N * K, d]
    read, write = (pairs.of(buffers.tensor(name), 4) for name in ("read", "write"))  # [N * K or 1, k, d]
    if read.shape[0] == 1:
        term = (out @ read[0].T) @ write[0]
    else:
        term = torch.einsum("nk,nkd->nd", torch.einsum("nd,nkd->nk", out, read), write)
    if buffers.has("edited"):
        term = term * pairs.of(buffers.tensor("edited"), 2)[:, None]
    out = out + term
    if buffers.has("output_scale"):
        out = out * pairs.of(buffers.tensor("output_scale"), 3)
    out = out * shares.reshape(-1)[order, None]
    unsorted = torch.empty_like(out)
    unsorted[order] = out
    return unsorted.view(count, top, -1).sum(1).to(hidden.dtype)


def _linear(module: nn.Module, name: str, x: torch.Tensor, pairs: _Pairs) -> torch.Tensor:
    weight, bias = getattr(module, name), getattr(module, f"{name}_bias", None)
    bias = None if bias is None else bias[pairs.experts]
    return _grouped_linear(x, weight, offs=pairs.ends, bias=bias, is_transposed=attrgetter("is_transposed")(module))


class SplitByTrial:
    """Experts that are modules of their own see tokens without their rows. So where a pass holds several trials, the
    mixture runs once for the rows of each."""

    def __init__(self, mixture: Mixture, rows: Rows) -> None:
        self.module = mixture.module
        self._rows = rows
        self._attached = False
        self._own: Callable[..., torch.Tensor] | None = None

    def attach(self) -> None:
        self._attached = True
        self._own = self.module.__dict__.get("forward")
        whole = self.module.forward

        def forward(hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            trials = self._rows.on(hidden.device)
            if isinstance(trials, int):
                return whole(hidden, *args, **kwargs)
            result = torch.empty_like(hidden)
            for trial in trials.unique().tolist():
                with self._rows.all_of(trial):
                    result[trials == trial] = whole(hidden[trials == trial], *args, **kwargs)
            return result

        self.module.forward = forward

    def detach(self) -> None:
        if self._attached and self._own is None:
            del self.module.forward
        elif self._attached and self._own is not None:
            self.module.forward = self._own
        self._attached = False
