"""Screening: several candidates are drawn for each trial, forward passes rank them, one is read in full.

Optuna's sampler draws; this one wraps it and chooses among its draws. What was left out is kept with the trial that was
taken, as candidates without a count. Touches the study's storage to keep that, nothing else; the model is behind a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from bruno.engine.events import Emit, Notice
from bruno.engine.scoring.result import Glance
from bruno.engine.search.space import Parameters, Space

Look = Callable[[Sequence[Parameters]], Sequence[Glance]]
"""What forward passes say of each candidate."""

KEPT = "screened"
"""Name of the user attribute of a trial that was chosen among candidates."""
ALLOWED = (0.0, 0.02, 0.05)
"""Shares of the prompts that may be refused, in turn: each trial is to lower the KL at one of these (the epsilon-constraint
method; Haimes, Lasdon and Wismer, 1971)."""
LEAST = 5
"""Trials that were both glanced at and counted before predictions are calibrated by them."""


@dataclass(frozen=True)
class Screening:
    """How a search screens: what looks at candidates, how many of them a trial has, and of how many bad prompts."""

    look: Look
    space: Space
    candidates: int
    prompts: int


class Calibration:
    """From a glance to a predicted refusal count, for ranking only: isotonic in the mean log-probability of an opening,
    fitted to the trials of this study that were glanced at and then counted."""

    def __init__(self, seen: Sequence[tuple[float, float]], prompts: int) -> None:
        """`seen`: (opening, counted refusals) of trials; `prompts`: how many there are."""
        from scipy.optimize import isotonic_regression

        self.prompts = prompts
        ordered = sorted(seen)
        self.openings = np.array([opening for opening, _ in ordered])
        counts = np.array([count for _, count in ordered], dtype=float)
        self.counts = isotonic_regression(counts).x if len(ordered) >= LEAST else None

    def predict(self, glance: Glance) -> float:
        """Refusals to be expected, 0 to `prompts`; uncalibrated while too few trials were counted."""
        if self.counts is None:
            return glance.expected
        return float(np.interp(glance.opening, self.openings, self.counts))


class ScreeningSampler(optuna.samplers.BaseSampler):
    """Draws several candidates from `base` (at random before it has learned) and takes the most promising.

    The most promising has the least KL among those predicted to refuse no more than is allowed in this trial; where none
    is, the fewest predicted refusals.

    Args:
        base: what draws. It must draw jointly (multivariate).
        screening: how many are drawn, and what looks at them.
        seed: of the draws at random.
        turn: which of `ALLOWED` this trial is for.
    """

    def __init__(
        self,
        base: optuna.samplers.BaseSampler,
        screening: Screening,
        *,
        seed: int,
        turn: int,
    ) -> None:
        self.base, self.space, self.look, self.turn = base, screening.space, screening.look, turn
        self.candidates, self.prompts = screening.candidates, screening.prompts
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: the space has one shape."""
        del study, trial
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The chosen candidate; nothing where all parameters are given already."""
        if not search_space:
            return {}
        drawn = [
            self.base.sample_relative(study, trial, search_space) or self._at_random() for _ in range(self.candidates)
        ]
        glances = self.look(drawn)
        calibration = Calibration(glanced_and_counted(study), self.prompts)
        predicted = [calibration.predict(glance) for glance in glances]
        best = most_promising(glances, predicted, ALLOWED[self.turn % len(ALLOWED)] * self.prompts)
        described = [
            {"parameters": parameters, "kl": glance.kl, "opening": glance.opening, "predicted": count}
            for parameters, glance, count in zip(drawn, glances, predicted, strict=True)
        ]
        taken = described.pop(best)
        del taken["parameters"]
        study._storage.set_trial_user_attr(trial._trial_id, KEPT, taken | {"left_out": described})
        return drawn[best]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the base does."""
        return self.base.sample_independent(study, trial, param_name, param_distribution)

    def _at_random(self) -> Parameters:
        scope = ("global", "per layer")[self._random.integers(2)]
        numbers = {name: float(self._random.uniform(low, high)) for name, (low, high) in self.space.ranges().items()}
        return {"direction_scope": scope, **numbers}


def most_promising(glances: Sequence[Glance], predicted: Sequence[float], allowed: float) -> int:
    """Which has the least KL among those predicted to refuse at most `allowed` (rounded), else the fewest predicted
    refusals."""
    able = [index for index, count in enumerate(predicted) if count < allowed + 0.5]
    if able:
        return min(able, key=lambda index: glances[index].kl)
    return min(range(len(predicted)), key=lambda index: (predicted[index], glances[index].opening))


def glanced_and_counted(study: optuna.Study) -> list[tuple[float, float]]:
    """(opening, counted refusals) of the study's trials that have both."""
    return [
        (trial.user_attrs[KEPT]["opening"], trial.user_attrs["scores"]["refusals"])
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if KEPT in trial.user_attrs and "scores" in trial.user_attrs
    ]


def screening_report(study: optuna.Study) -> dict[str, float | int | None] | None:
    """How well screening predicted, each prediction made before its trial was counted; None where nothing was screened.

    Returns:
        `left_out`: candidates that were glanced at and not read. `compared`: trials that were predicted and counted.
        `rank_correlation`: Spearman's, of prediction and count. `mean_error`: mean |prediction - count|, in refusals. Both
        None where they cannot be said (fewer than three trials; equal counts).
    """
    from scipy.stats import rankdata

    screened = [
        trial.user_attrs
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if KEPT in trial.user_attrs
    ]
    if not screened:
        return None
    pairs = [(each[KEPT]["predicted"], each["scores"]["refusals"]) for each in screened if "scores" in each]
    predicted, counted = np.array(pairs, dtype=float).reshape(-1, 2).T
    varied = len(pairs) >= 3 and np.ptp(predicted) > 0 and np.ptp(counted) > 0
    return {
        "left_out": sum(len(each[KEPT]["left_out"]) for each in screened),
        "compared": len(pairs),
        "rank_correlation": round(float(np.corrcoef(rankdata(predicted), rankdata(counted))[0, 1]), 3)
        if varied
        else None,
        "mean_error": round(float(np.abs(predicted - counted).mean()), 2) if pairs else None,
    }


def say_screening(study: optuna.Study, prompts: int, emit: Emit) -> None:
    """`screening_report` in one sentence of the log; nothing where nothing was screened."""
    found = screening_report(study)
    if found is None:
        return
    how = "too few trials to compare"
    if found["mean_error"] is not None:
        rank = "" if found["rank_correlation"] is None else f"rank correlation {found['rank_correlation']:.2f}, "
        how = f"{rank}mean error {found['mean_error']:.1f} of {prompts} refusals over {found['compared']} trials"
    text = f"Screening left out {found['left_out']} candidates, which have no counts; its predictions: {how}"
    emit(Notice(text=text))
