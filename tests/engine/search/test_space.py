"""Every parameter set means an edit within the ranges that were promised."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.search.space import Space

COMPONENTS = ("attn.o_proj", "mlp.down_proj")


@given(layers=st.integers(1, 130), seed=st.integers(0, 1000))
def test_drawn_trials_are_edits_within_the_model(layers, seed):
    space = Space(layers, COMPONENTS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    parameters = space.suggest(study.ask())
    edit = space.edit(parameters)
    assert set(edit.kernels) == set(COMPONENTS)
    assert (edit.direction_index is None) == (edit.scope == "per layer")
    if edit.direction_index is not None:
        assert 0 <= edit.direction_index <= space.last
    for component, kernel in edit.kernels.items():
        assert (-0.25 if component.startswith("mlp") else 0.8) <= kernel.max_weight <= 1.5
        assert 0.6 * space.last <= kernel.position <= space.last
        assert 0 <= kernel.min_fraction <= 1
        assert kernel.reach >= 0


def test_ranges_of_the_design():
    ranges = Space(31, COMPONENTS).ranges()
    assert ranges["direction_index"] == (12, 27)
    assert ranges["attn.o_proj.max_weight"] == (0.8, 1.5)
    assert ranges["mlp.down_proj.max_weight"] == (-0.25, 1.5)
    assert ranges["mlp.down_proj.position"] == (18, 30)
    assert ranges["attn.o_proj.reach"] == (1, 18)


@pytest.mark.parametrize("layers", [1, 2, 3, 12, 30, 64, 126])
def test_warm_starts_lie_inside_the_space(layers):
    space = Space(layers, COMPONENTS)
    names = space.suggest(optuna.create_study().ask()).keys()
    for profile in space.warm_starts():
        assert profile.keys() == names
        for name, (low, high) in space.ranges().items():
            assert low <= profile[name] <= high, name
