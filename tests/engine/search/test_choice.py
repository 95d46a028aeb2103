"""The choice follows its stated rule, whatever the order of the trials."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.scoring.scores import Scores
from bruno.engine.search.choice import choose, pareto_front
from bruno.engine.search.study import FinishedTrial


def trial(index, refusals, kl):
    return FinishedTrial(index, {}, Scores(refusals=refusals, prompts=60, kl=kl))


CASES = [
    # (trials as (refusals, kl)), ceiling, chosen index, words of the rule
    ([(5, 0.01), (0, 0.15), (0, 0.12), (0, 0.3)], 0.2, 2, "fewest refusals"),
    ([(5, 0.01), (0, 0.25)], 0.2, 0, "fewest refusals"),
    ([(3, 0.2), (4, 0.1)], 0.2, 0, "at most 0.2"),
    ([(0, 0.5), (9, 0.3)], 0.2, 1, "no trial is at or below 0.2"),
    ([(1, 0.1), (1, 0.1)], 0.2, 0, "fewest refusals"),
]


@pytest.mark.parametrize(("scores", "ceiling", "index", "words"), CASES)
def test_rule(scores, ceiling, index, words):
    trials = [trial(number, *score) for number, score in enumerate(scores)]
    random.Random(1).shuffle(trials)
    chosen, rule = choose(trials, ceiling)
    assert chosen.index == index
    assert words in rule


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=30))
def test_nothing_beats_the_front(scores):
    trials = [trial(index, *score) for index, score in enumerate(scores)]
    front = pareto_front(trials)

    def beats(one, other):
        pair = one.scores.refusals <= other.scores.refusals and one.scores.kl <= other.scores.kl
        return pair and (one.scores != other.scores)

    assert all(not beats(one, member) for one in trials for member in front)
    assert all(one in front or any(beats(m, one) or m.scores == one.scores for m in front) for one in trials)
