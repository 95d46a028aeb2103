"""Screening on functions whose optimum is known: what is drawn, what is kept of it, what is said of how well it predicted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from bruno.engine.events import Notice
from bruno.engine.scoring.result import Glance, Stopped, better_trial
from bruno.engine.search.screening import (
    ALLOWED,
    Calibration,
    Screening,
    most_promising,
    say_screening,
    screening_report,
)
from bruno.engine.search.storage import open_study
from bruno.engine.search.study import Plan, Stop, finished_trials, search, stopped_trials
from tests.engine.search.test_study import SPACE, bowl


def look(candidates):
    """Exact in KL, and as a refusal's opening would be: right in its order, wrong in its size."""
    scores = bowl([SPACE.edit(each) for each in candidates], 0)
    return [Glance(each.kl, -5 + 4 * each.rate, 60 * math.exp(-5 + 4 * each.rate)) for each in scores]


def staged(edits, rows, known=()):
    """`bowl`, stopped where a known trial is better."""
    results = []
    for plain in bowl(edits, rows):
        better = better_trial(plain.kl, known)
        if better is not None and plain.refusals >= better[1].refusals:
            excess = plain.kl - better[1].kl
            results.append(Stopped(better[1].refusals, plain.prompts, plain.kl, excess, better[0]))
        else:
            results.append(plain)
    return results


def run(path, evaluate=bowl, stop=None, trials=16, candidates=4):
    screening = Screening(look, SPACE, candidates, 60)
    plan = Plan(trials=trials, batch=2, startup=6, seed=3, warm_starts=SPACE.warm_starts()[:2], screening=screening)
    path.mkdir(exist_ok=True)
    study = open_study(str(path / "study.sqlite3"), "s", {})
    search(study, SPACE, evaluate, plan, lambda event: None, stop or Stop())
    return study


def facts(study):
    return [(each.index, each.parameters, each.scores) for each in finished_trials(study)]


def test_candidates_that_were_left_out_are_kept_as_such_and_have_no_counts(tmp_path):
    study = run(tmp_path, trials=8)
    told = study.get_trials()
    assert len(told) == len(finished_trials(study)) == 8
    for trial in told:
        kept = trial.user_attrs.get("screened")
        assert (kept is None) == (trial.user_attrs["index"] < 2)  # warm starts are taken as they are
        if kept:
            assert [set(each) for each in kept["left_out"]] == [{"parameters", "kl", "opening", "predicted"}] * 3
            assert kept["kl"] == trial.user_attrs["scores"]["kl"]
            assert all(each["parameters"] != trial.params for each in kept["left_out"])


def test_what_it_takes_is_better_than_what_is_drawn(tmp_path):
    def mean(study):
        return sum(scores.kl + scores.rate for _, _, scores in facts(study)[2:]) / 22

    screened = run(tmp_path / "screened", trials=24)
    plain = open_study(str(tmp_path / "plain.sqlite3"), "s", {})
    warm = SPACE.warm_starts()[:2]
    search(plain, SPACE, bowl, Plan(24, 2, 6, 3, warm), lambda event: None, Stop())
    assert mean(screened) < mean(plain)


def test_resumed_is_uninterrupted(tmp_path):
    whole = run(tmp_path / "whole")
    stop, calls = Stop(), []

    def interrupted(edits, rows, known):
        calls.append(1)
        stop.requested = len(calls) == 5
        return bowl(edits, rows)

    run(tmp_path / "cut", interrupted, stop)
    assert facts(run(tmp_path / "cut")) == facts(whole)


def test_stopped_trials_have_no_count_anywhere_and_a_resumed_study_stops_the_same(tmp_path):
    whole = run(tmp_path / "whole", staged)
    stopped = stopped_trials(whole)
    assert stopped and len(stopped) + len(finished_trials(whole)) == 16
    for trial in whole.get_trials():
        if trial.user_attrs["index"] in stopped:
            assert "scores" not in trial.user_attrs and trial.constraints["excess_kl"] > 0
    assert {each.number for each in whole.best_trials}.isdisjoint(
        trial.number for trial in whole.get_trials() if "stopped" in trial.user_attrs
    )
    stop, calls = Stop(), []

    def interrupted(edits, rows, known):
        calls.append(1)
        stop.requested = len(calls) == 5
        return staged(edits, rows, known)

    run(tmp_path / "cut", interrupted, stop)
    resumed = run(tmp_path / "cut", staged)
    assert facts(resumed) == facts(whole) and stopped_trials(resumed) == stopped


def test_the_log_and_the_report_say_how_well_it_predicted(tmp_path):
    study, events = run(tmp_path), []
    found = screening_report(study)
    assert found and found["left_out"] == 14 * 3 and found["compared"] == 14
    kept = [trial.user_attrs for trial in study.get_trials() if "screened" in trial.user_attrs]
    predicted, counted = ([each[a][b] for each in kept] for a, b in (("screened", "predicted"), ("scores", "refusals")))
    assert found["rank_correlation"] == pytest.approx(spearmanr(predicted, counted).statistic, abs=1e-3)
    assert found["mean_error"] == pytest.approx(
        sum(abs(p - c) for p, c in zip(predicted, counted, strict=True)) / 14, abs=0.01
    )
    say_screening(study, 60, events.append)
    (event,) = events
    assert isinstance(event, Notice)
    assert event.text.startswith("Screening left out 42 candidates, which have no counts; its predictions: rank correl")
    empty = open_study(str(tmp_path / "empty.sqlite3"), "s", {})
    say_screening(empty, 60, events.append)
    assert screening_report(empty) is None and len(events) == 1


@given(st.lists(st.tuples(st.floats(-9, 0), st.integers(0, 60)), max_size=20), st.floats(-12, 0), st.floats(-12, 0))
def test_predictions_stay_in_range_and_rise_with_the_opening(seen, one, other):
    calibration = Calibration(seen, 60)
    low, high = sorted((one, other))
    first, second = (calibration.predict(Glance(0.1, each, 60 * math.exp(each))) for each in (low, high))
    assert 0 <= first <= second + 1e-9 <= 60 + 1e-6


@pytest.mark.parametrize(
    ("predicted", "allowed", "chosen"),
    [([0.4, 3, 0.2], 0, 0), ([0.4, 3, 0.2], 3, 1), ([7, 6, 9], 3, 1), ([0, 0, 0], 0, 1)],
)
def test_the_least_kl_among_those_that_may_refuse_so_many(predicted, allowed, chosen):
    glances = [Glance(kl, -1.0, 1.0) for kl in (0.2, 0.1, 0.3)]
    assert most_promising(glances, predicted, allowed) == chosen
    assert ALLOWED[0] == 0
