"""Choose a trial: the front of trials that nothing beats, and the stated rule that picks one of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bruno.engine.search.study import FinishedTrial


def pareto_front(trials: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Trials that no other beats in refusals and KL at once: fewest refusals first, one for each count.

    Of trials with equal scores the earliest stays.
    """
    front: list[FinishedTrial] = []
    for trial in sorted(trials, key=lambda trial: (trial.scores.refusals, trial.scores.kl, trial.index)):
        if not front or trial.scores.kl < front[-1].scores.kl:
            front.append(trial)
    return front


def choose(trials: Sequence[FinishedTrial], kl_ceiling: float) -> tuple[FinishedTrial, str]:
    """The trial with the fewest refusals among those at or below the KL ceiling (nats); then the smaller KL.

    Returns:
        The trial and the rule in words. When every trial is above the ceiling the one with the smallest KL is taken,
        and the rule says so.
    """
    below = [trial for trial in trials if trial.scores.kl <= kl_ceiling]
    if below:
        rule = f"fewest refusals with a KL divergence of at most {kl_ceiling:g}"
        return pareto_front(below)[0], rule
    rule = f"smallest KL divergence, because no trial is at or below {kl_ceiling:g}"
    return min(trials, key=lambda trial: (trial.scores.kl, trial.index)), rule
