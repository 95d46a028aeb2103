from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.errors import InputError
from bruno.guard.disk import disk_needed

CASES = [
    # weights GB, class, needed, recommended
    (65.5, "32B", 200, 200),
    (65.5, "", 200, 200),
    (145.4, "70B", 311, 400),
    (141.1, "70B", 303, 400),
    (40.0, "70B", 300, 400),
    (0.27, "demo", 21, 21),
    (15.2, "7B", 60, 60),
    (29.5, "14B", 100, 100),
    (65.5, "7B", 200, 200),  # a small class does not talk the bytes down
    (500.0, "70B", 1020, 1020),
]


@pytest.mark.parametrize(("weights_gb", "size_class", "needed", "recommended"), CASES)
def test_cases(weights_gb: float, size_class: str, needed: float, recommended: float) -> None:
    need = disk_needed(weights_gb * 1e9, size_class)
    assert (need.minimum_gb, need.recommended_gb, need.gb) == (needed, recommended, recommended)
    assert f"{weights_gb:.1f} GB" in need.arithmetic[0]
    assert f"{needed:g} GB" in need.arithmetic[-1]


@given(st.floats(1, 3e12), st.sampled_from(["", "demo", "7B", "14B", "32B", "70B"]))
def test_never_below_the_formula_nor_the_floor(size: float, size_class: str) -> None:
    need = disk_needed(size, size_class)
    assert need.minimum_gb >= 2 * size / 1e9 + 20
    assert need.recommended_gb >= need.minimum_gb
    assert need.minimum_gb >= {"32B": 200, "70B": 300}.get(size_class, 0)


@pytest.mark.parametrize("size", [0, -1, math.nan, math.inf])
def test_a_size_that_is_none(size: float) -> None:
    with pytest.raises(InputError):
        disk_needed(size)


def test_unknown_class_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="32B"):
        disk_needed(1e9, "33B")
