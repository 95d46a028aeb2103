"""Which trials share a pass over prompts, and how many prompts it has: what costs a GPU least. Pure.

A pass costs what its blocks' products take, or what it takes to launch them, whichever is longer. Trials that begin at
different blocks can share one only from the lowest of these on; prompts of different lengths only padded to the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_RATE = 6e14  # operations a second that a pass reaches on a large GPU
_LAUNCH, _LEAN_LAUNCH = 2.2e-3, 0.8e-3  # seconds that Python takes for a block of a pass (H100 machines, 16 cores)
_MOST_PIECES = 4


@dataclass(frozen=True)
class BlockCost:
    """What one block of a pass costs.

    Attributes:
        launch: seconds, whatever there is to compute.
        token: seconds of computing for each token.
    """

    launch: float
    token: float

    @classmethod
    def on_gpu(cls, parameters: int, layers: int, *, lean: bool) -> BlockCost:
        """Of a model whose blocks have so many parameters in all."""
        return cls(_LEAN_LAUNCH if lean else _LAUNCH, 2 * parameters / max(1, layers) / _RATE)

    def seconds(self, tokens: float) -> float:
        """One block over so many tokens."""
        return max(self.launch, self.token * tokens)


def prompts_of_pass(lengths: Sequence[int], most: int, cost: BlockCost) -> int:
    """How many prompts one pass has, at most `most`, when they are sorted by length and cut into passes of as many: few
    passes are launched sooner, many pad less."""
    ordered = sorted(lengths)
    fewest = max(1, math.ceil(len(ordered) / most))
    sizes = [math.ceil(len(ordered) / pieces) for pieces in range(fewest, fewest + _MOST_PIECES)]

    def seconds(size: int) -> float:
        parts = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
        return sum(cost.seconds(part[-1] * len(part)) for part in parts)

    return max(1, min(sizes, key=seconds))


def groups(begins: Sequence[int], layers: int, tokens: int, cost: BlockCost, most: int) -> list[list[int]]:
    """Trials that share a pass, at most `most` of them: the partition that costs least.

    Args:
        begins: for each trial the block that its pass begins at, below `layers`.
        tokens: of one trial in a pass.

    Returns:
        Positions in `begins`, those of each group by where they begin.
    """
    order = sorted(range(len(begins)), key=lambda trial: begins[trial])
    best: list[tuple[float, int]] = [(0.0, 0)]  # cheapest way to place the first n, and where its last group begins
    for end in range(1, len(order) + 1):
        best.append(
            min(
                (best[first][0] + (layers - begins[order[first]]) * cost.seconds((end - first) * tokens), first)
                for first in range(max(0, end - most), end)
            )
        )
    found, end = [], len(order)
    while end:
        first = best[end][1]
        found.append(order[first:end])
        end = first
    return found[::-1]
