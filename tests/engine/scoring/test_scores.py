"""KL and intervals against other ways of computing them, and whole scores on a tiny real model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from bruno.engine.edits.build import Kernel, TrialEdit
from bruno.engine.edits.session import EditSession
from bruno.engine.scoring.refusals import Markers, RefusalDetector
from bruno.engine.scoring.result import Scores, Stopped, better_trial
from bruno.engine.scoring.scores import Scorer, kl_divergence, wilson_interval
from bruno.engine.search.choice import choose, pareto_front
from bruno.engine.search.study import FinishedTrial
from bruno.settings.engine import EngineSettings
from tests.engine.edits.test_build import random_directions
from tests.engine.models import loaded_model

NOTHING = TrialEdit("per layer", None, {})
BAD, GOOD = [f"bad {n} {'x' * n}" for n in range(5)], [f"good {n} {'y' * n}" for n in range(6)]


def logprobs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).log_softmax(-1)


@pytest.mark.parametrize("shape", [(1, 5), (40, 300), (3, 4, 50)])
def test_kl_against_scipy(shape):
    base, edited = logprobs(*shape), logprobs(*shape, seed=1)
    expected = entropy(base.double().exp().numpy(), edited.double().exp().numpy(), axis=-1).mean()
    assert kl_divergence(base, edited) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(2, 40), st.integers(0, 99))
def test_kl_of_equals_is_exactly_0_and_never_negative(rows, vocabulary, seed):
    base = logprobs(rows, vocabulary, seed=seed)
    assert kl_divergence(base, base.clone()) == 0.0
    assert kl_divergence(base, logprobs(rows, vocabulary, seed=seed + 1)) >= 0


def test_a_token_the_base_rules_out_adds_nothing():
    base = torch.tensor([[0.5, 0.5, 0.0]]).log()
    edited = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert kl_divergence(base, edited) == pytest.approx(0.5 * torch.tensor(2.0).log().item())


def test_masked_positions_do_not_count():
    base, edited = logprobs(4, 3, 20), logprobs(4, 3, 20, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    assert kl_divergence(base, edited, mask) == pytest.approx(kl_divergence(base[mask], edited[mask]), rel=1e-12)
    changed = edited.clone()
    changed[~mask] = logprobs(20, seed=9)
    assert kl_divergence(base, changed, mask) == kl_divergence(base, edited, mask)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_as_published(count, of, low, high):
    assert wilson_interval(count, of) == pytest.approx((low, high), abs=5e-5)


@pytest.fixture(scope="module")
def loaded():
    return loaded_model("llama")


def scorer(loaded, session, **scoring):
    return Scorer(
        loaded,
        session,
        random_directions(loaded.layers, loaded.hidden_size),
        bad=BAD,
        good=GOOD,
        detector=RefusalDetector("strict", Markers(core=(r"[a-m]\w*",))),  # a coin toss on random text
        settings=EngineSettings.model_validate({"scoring": {"max_new_tokens": 6, **scoring}}),
        emit=lambda event: None,
    )


def strong(loaded, weight=1.2):
    writers = {writer.component for writer in loaded.writers}
    return TrialEdit("per layer", None, {name: Kernel(weight, 2, 1.0, 4) for name in sorted(writers)})


def test_an_edit_that_does_nothing_scores_as_the_base(loaded):
    with EditSession(loaded.writers, max_trials=2) as session:
        part = scorer(loaded, session)
        base = part.base_refusals()
        assert part.score([NOTHING]) == [Scores(refusals=base, prompts=5, kl=0.0)]


def test_trials_of_a_batch_score_as_they_do_alone(loaded):
    edits = [strong(loaded), NOTHING, strong(loaded, 0.4)]
    with EditSession(loaded.writers, max_trials=3) as session:
        part = scorer(loaded, session, kl_divergence_tokens=3)
        together = part.score(edits)
        alone = [part.score([edit])[0] for edit in edits]
    for one, other in zip(together, alone, strict=True):
        assert one.refusals == other.refusals
        assert one.kl == pytest.approx(other.kl, abs=1e-6)
        assert one.kl_tokens == pytest.approx(other.kl_tokens, abs=1e-6)
    assert together[0].kl > 1e-3 and together[0].kl > together[2].kl > together[1].kl == 0.0


def test_fewer_rows_change_nothing(loaded):
    with EditSession(loaded.writers, max_trials=1) as session:
        part = scorer(loaded, session)
        whole, small = part.score([strong(loaded)])[0], part.score([strong(loaded)], rows=2)[0]
    assert whole.refusals == small.refusals
    assert whole.kl == pytest.approx(small.kl, abs=1e-6)


def test_several_tokens_only_when_asked(loaded):
    with EditSession(loaded.writers, max_trials=1) as session:
        assert scorer(loaded, session).score([strong(loaded)])[0].kl_tokens is None


def test_ordinary_refusals_before_and_after(loaded):
    with EditSession(loaded.writers, max_trials=1) as session:
        before, after, _ = scorer(loaded, session).ordinary(NOTHING)
    assert before == after


def test_trials_that_nothing_beats_score_as_without_stopping(loaded):
    edits = [strong(loaded), NOTHING, strong(loaded, 0.4)]
    with EditSession(loaded.writers, max_trials=3) as session:
        part = scorer(loaded, session, kl_divergence_tokens=3)
        plain = part.score(edits)
        assert part.score_against([(7, Scores(5, 5, 100.0))], edits) == plain


def test_a_beaten_trial_stops_and_leaves_the_others_of_its_batch_alone(loaded):
    edits = [strong(loaded), NOTHING, strong(loaded, 0.4)]
    with EditSession(loaded.writers, max_trials=3) as session:
        part = scorer(loaded, session, kl_divergence_tokens=3)
        plain = part.score(edits)
        between = (plain[0].kl + plain[2].kl) / 2
        first, second, third = part.score_against([(7, Scores(0, 5, between)), (9, Scores(0, 5, 50.0))], edits)
        assert session.trials == 3  # all edits are active again
    assert (second, third) == (plain[1], plain[2])
    assert first == Stopped(0, 5, plain[0].kl, plain[0].kl - between, 7, plain[0].kl_tokens)


@pytest.mark.parametrize("least", range(1, 6))
def test_what_a_stopped_trial_was_seen_to_refuse_is_no_more_than_its_count(loaded, least):
    edit = strong(loaded)
    with EditSession(loaded.writers, max_trials=1) as session:
        part = scorer(loaded, session, max_new_tokens=30)
        (plain,) = part.score([edit])
        (found,) = part.score_against([(1, Scores(least, 5, plain.kl / 2))], [edit])
    if isinstance(found, Stopped):
        assert least <= found.at_least <= plain.refusals and found.kl == plain.kl
    else:
        assert found == plain
    assert isinstance(found, Scores) or plain.refusals >= least


counts = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.1, 0.2, 0.3, 0.4])), max_size=12)


@given(counts, st.data())
def test_stopping_changes_neither_the_front_nor_the_choice(drawn, data):
    """Each trial in turn: stopped where the rule says so (at any count it allows), scored otherwise."""
    every = [FinishedTrial(index, {}, Scores(refusals, 4, kl)) for index, (refusals, kl) in enumerate(drawn)]
    kept = []
    for trial in every:
        better = better_trial(trial.scores.kl, [(each.number, each.scores) for each in kept])
        if better is None or trial.scores.refusals < better[1].refusals:
            kept.append(trial)
            continue
        assert better[1].kl < trial.scores.kl and better[1].refusals <= trial.scores.refusals
        if data.draw(st.booleans()):  # its answers ended before they were settled: it was counted after all
            kept.append(trial)
    assert pareto_front(kept) == pareto_front(every)
    if every:
        ceiling = data.draw(st.sampled_from([0.05, 0.1, 0.25, 1.0]))
        assert choose(kept, ceiling) == choose(every, ceiling)
