"""Which trials share a pass: the cheapest partition there is, and the obvious ones at the ends."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.model.sharing import BlockCost, groups, prompts_of_pass

LAYERS = 20


def price(parts: list[list[int]], begins: list[int], tokens: int, cost: BlockCost) -> float:
    return sum((LAYERS - min(begins[t] for t in part)) * cost.seconds(len(part) * tokens) for part in parts)


@given(
    begins=st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=7),
    tokens=st.integers(1, 200),
    most=st.integers(1, 8),
)
def test_no_partition_of_neighbours_costs_less(begins: list[int], tokens: int, most: int) -> None:
    cost = BlockCost(launch=100, token=1)
    found = groups(begins, LAYERS, tokens, cost, most)
    assert sorted(trial for group in found for trial in group) == list(range(len(begins)))
    assert max(map(len, found)) <= most
    order = sorted(range(len(begins)), key=lambda trial: begins[trial])
    others = []
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            edges = [0, *cuts, len(order)]
            parts = [order[a:b] for a, b in pairwise(edges)]
            if max(map(len, parts)) <= most:
                others.append(price(parts, begins, tokens, cost))
    assert price(found, begins, tokens, cost) == pytest.approx(min(others))


def test_what_is_bound_by_launches_is_shared_and_what_is_bound_by_products_is_not() -> None:
    begins = [3, 3, 3, 3]
    assert len(groups(begins, LAYERS, 10, BlockCost(launch=100, token=1), 8)) == 1
    assert len(groups([0, 6, 12, 18], LAYERS, 100, BlockCost(launch=1, token=1), 8)) == 4


@pytest.mark.parametrize(
    ("lengths", "most", "launch", "expected"),
    [
        ([30] * 100, 128, 1, 100),  # nothing is padded
        ([10] * 50 + [100] * 50, 128, 1, 50),  # half of it would be padding
        ([10] * 50 + [100] * 50, 128, 1e9, 100),  # but launching is all that counts
        ([10] * 90, 32, 1e9, 30),
        ([7], 128, 1, 1),
    ],
)
def test_prompts_of_a_pass(lengths: list[int], most: int, launch: float, expected: int) -> None:
    assert prompts_of_pass(lengths, most, BlockCost(launch, 1)) == expected
