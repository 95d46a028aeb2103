"""A check on a real pass: do the writers explain all that the blocks add to the residual stream?

Runs the model with hooks of its own, which it removes. Used by discovery, and by the tests of every family in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from bruno.engine.model.architectures import Mixture, Writer


@torch.inference_mode()
def residual_error(model: nn.Module, blocks: nn.ModuleList, writers: Sequence[Writer]) -> float:
    """How far the writers are from explaining the residual stream, on a short pass over arbitrary tokens.

    For each block, what it adds must be the sum of its writers' outputs, each through its post-norm, times one common
    scalar (a residual multiplier). A mixture of experts counts by its whole output, which must double when the outputs
    of its writers (routed and shared experts) do: then nothing else is in it and no norm stands behind them. Returns
    the worst relative error over blocks: about the data type's rounding when the table is right, around 1 when a writer
    is missing or a norm stands between.
    """
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}
    written: dict[int, torch.Tensor] = {}
    mixtures = {writer.mixture.layer: writer.mixture for writer in writers if writer.mixture is not None}
    inside = {id(m) for mixture in mixtures.values() for m in mixture.module.modules()}
    doubling: list[float] = []

    def keep_block(layer: int):
        def hook(_module, args, kwargs, output) -> None:
            inputs[layer] = (args[0] if args else kwargs["hidden_states"]).float()
            outputs[layer] = _first(output).float()

        return hook

    def add(layer: int, value: torch.Tensor) -> None:
        written[layer] = written[layer] + value if layer in written else value

    def keep_writer(writer: Writer):
        def hook(_module, _args, output) -> None:
            value = output.float()
            if writer.post_norm_gain is not None:
                value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * writer.post_norm_gain
            add(writer.layer, value)

        return hook

    def keep_mixture(mixture: Mixture):
        def hook(module: nn.Module, args, output) -> None:
            once = _first(output).float()
            add(mixture.layer, once)
            with _doubled([w for w in writers if w.layer == mixture.layer and id(w.module) in inside]):
                twice = _first(module.forward(*args)).float()
            doubling.append(float((twice - 2 * once).norm() / once.norm().clamp_min(1e-30)))

        return hook

    handles = [block.register_forward_hook(keep_block(i), with_kwargs=True) for i, block in enumerate(blocks)]
    handles += [m.module.register_forward_hook(keep_mixture(m)) for m in mixtures.values()]
    handles += [w.module.register_forward_hook(keep_writer(w)) for w in writers if id(w.module) not in inside]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.arange(3, 11, device=device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    errors = doubling
    for layer in range(len(blocks)):
        added, sum_written = outputs[layer] - inputs[layer], written[layer].to(outputs[layer].device)
        scalar = (added * sum_written).sum() / sum_written.square().sum().clamp_min(1e-30)
        errors.append(float((added - scalar * sum_written).norm() / added.norm().clamp_min(1e-30)))
    return max(errors)


def _first(output: torch.Tensor | tuple) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


@contextmanager
def _doubled(writers: Sequence[Writer]) -> Iterator[None]:
    def twice(_module: nn.Module, _args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output * 2

    handles = [w.module.register_forward_hook(twice) for w in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
