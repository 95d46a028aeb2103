"""Which experts a mixture uses: how often over given prompts, and whether an edit made the routing collapse.

Hooks on the routers read what they decide; nothing is changed. Padding never counts. Families differ in how a router
scores (softmax over all experts, softmax over the chosen ones, sigmoid with a correction that only the choice sees) but
all say which experts they chose with which weights, and that is what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit
from bruno.engine.model.architectures import Mixture, find_mixtures
from bruno.engine.model.chat_format import Batch, EncodedPrompts
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import halving
from bruno.engine.model.probes import accepted
from bruno.errors import BrunoError


def expert_frequencies(loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0) -> torch.Tensor:
    """How often each routed expert is chosen, over all tokens of the prompts: [L, E] fp64 on the CPU.

    A block's row sums to 1 (each of a token's k choices counts 1 / k); rows of blocks without experts are 0. Blocks
    with fewer experts than the widest have zeros behind theirs.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so.

    Raises:
        BrunoError: the model has no experts, or a router says nothing that can be counted.
    """
    mixtures = find_mixtures(loaded.writers)
    if not mixtures or not prompts.ids:
        raise BrunoError(
            f"{loaded.name} has no experts to count" if not mixtures else "There are no prompts to count on"
        )
    tallies = halving(lambda size: _count(loaded, mixtures, prompts, size), rows or loaded.default_rows, emit)
    frequencies = torch.zeros(loaded.layers, max(mixture.experts for mixture in mixtures), dtype=torch.float64)
    for mixture, tally in zip(mixtures, tallies, strict=True):
        frequencies[mixture.layer, : mixture.experts] = tally.chosen / tally.chosen.sum()
    return frequencies


def busiest(frequencies: torch.Tensor, share: float) -> dict[int, tuple[int, ...]]:
    """For each block with experts, the fewest that together serve at least `share` (0 to 1) of its tokens' choices.

    Args:
        frequencies: [L, E], from `expert_frequencies`.

    Returns:
        Block -> expert numbers, ascending; as `EditRules.experts` takes it. With a share of 1: all that were ever chosen.
    """
    result = {}
    for layer, row in enumerate(frequencies):
        if not row.sum():
            continue
        order = row.argsort(descending=True, stable=True)
        served = row[order].cumsum(0) / row.sum()
        # a share of 1 must not fail by rounding, nor take an expert that serves nothing
        count = min(int((served < share - 1e-9).sum()) + 1, int((row > 0).sum()))
        result[layer] = tuple(sorted(order[:count].tolist()))
    return result


def routing_health(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, session: EditSession | None = None, rows: int = 0
) -> list[float]:
    """How evenly the experts share the work, for each trial of the session (one value without a session, or when it is off).

    Entropy of the mean distribution of routing weights over a block's experts, divided by log E: 1 when all do the
    same, 0 when one does all. The lowest block counts. A model without experts has nothing that could collapse: 1.

    Args:
        prompts: ordinary ones, which do not show the behaviour.
    """
    trials = session.trials if session is not None else 0
    mixtures = [mixture for mixture in find_mixtures(loaded.writers) if mixture.experts > 1]
    health = []
    for trial in range(max(1, trials)):
        if session is not None and trials:
            session.rows_of(trial)
        if not mixtures or not prompts.ids:
            health.append(1.0)
            continue
        tallies = halving(lambda size: _count(loaded, mixtures, prompts, size), rows or loaded.default_rows, emit)
        health.append(min(evenness(tally.weight) for tally in tallies))
    return health


def evenness(weights: torch.Tensor) -> float:
    """Entropy of weights [E] made to sum to 1, divided by log E: 0 to 1. E at least 2."""
    shares = weights.double() / weights.double().sum()
    return float(-torch.special.xlogy(shares, shares).sum()) / math.log(len(shares))


@dataclass
class _Tally:
    """What one router decided over all real tokens so far: times chosen, and routing weight, [E] fp64 on the CPU."""

    chosen: torch.Tensor
    weight: torch.Tensor


@torch.inference_mode()
def _count(loaded: LoadedModel, mixtures: Sequence[Mixture], prompts: EncodedPrompts, rows: int) -> list[_Tally]:
    tallies = [_Tally(*torch.zeros(2, mixture.experts, dtype=torch.float64)) for mixture in mixtures]
    for batch in prompts.batches(rows, loaded.device, equal_lengths=not loaded.pads):
        with _watching(mixtures, tallies, batch):
            loaded.model.base_model(
                **accepted(
                    loaded.model.base_model,
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=batch.position_ids,
                    use_cache=False,
                )
            )
    return tallies


@contextmanager
def _watching(mixtures: Sequence[Mixture], tallies: Sequence[_Tally], batch: Batch) -> Iterator[None]:
    real = batch.attention_mask.reshape(-1).bool()

    def hook(mixture: Mixture, tally: _Tally):
        def after(_module: nn.Module, _args: tuple, output: object) -> None:
            chosen, weights = decision(output, mixture.router_name)
            if len(chosen) != len(real):
                raise BrunoError(f"{mixture.router_name} decided for {len(chosen)} tokens, the batch has {len(real)}")
            kept = real.to(chosen.device)
            indices, shares = chosen[kept].cpu().reshape(-1), weights[kept].double()
            shares = (shares / shares.sum(-1, keepdim=True).clamp_min(1e-30)).cpu().reshape(-1)
            tally.chosen.index_add_(0, indices, torch.ones_like(shares))
            tally.weight.index_add_(0, indices, shares)

        return after

    handles = [m.router.register_forward_hook(hook(m, t)) for m, t in zip(mixtures, tallies, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decision(output: object, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a router returned, as the experts it chose and their weights, both [tokens, k].

    Routers return logits, weights and indices in one order or another (logits may be missing): the indices are the
    integers, and the weights have their shape.

    Raises:
        BrunoError: there is no such pair in what it returned.
    """
    parts = [part for part in (output if isinstance(output, tuple) else ()) if isinstance(part, torch.Tensor)]
    chosen = next((part for part in parts if not part.is_floating_point() and part.dim() >= 2), None)
    if chosen is not None:
        same = [part for part in parts if part.is_floating_point() and part.shape == chosen.shape]
        if same:
            return chosen.reshape(-1, chosen.shape[-1]), same[-1].reshape(-1, chosen.shape[-1])
    raise BrunoError(f"The router {name} does not say which experts it chose", fix="Leave expert_share at 1")
