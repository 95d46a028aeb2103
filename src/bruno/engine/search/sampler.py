"""The sampler that a trial is drawn by: one for each index, seeded from the run's seed and that index.

Pure apart from Optuna: it reads no study. `study.py` asks with it, and tells trials with the constraint kept here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import optuna

from bruno.engine.search.screening import Screening, ScreeningSampler
from bruno.engine.search.space import Parameters, Space

FEW = 0.1
"""Refusal rate above which a trial is infeasible to the sampler. Without it most of the good trials that TPE learns from are
those of little KL and many refusals, of which a front has more than of those that anyone would choose. While no trial is
feasible, Optuna prefers those that are closest to being so."""


class Seeding(Protocol):
    """What of a search's plan the sampler depends on."""

    @property
    def startup(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def screening(self) -> Screening | None: ...

    @property
    def warm_starts(self) -> Sequence[Parameters]: ...


class JointSampler(optuna.samplers.TPESampler):
    """Multivariate TPE over a space that every trial has whole. Optuna would find that out from all trials at each draw,
    which is a third of what a draw costs."""

    def __init__(self, space: Space, *, seed: int, n_startup_trials: int) -> None:
        super().__init__(seed=seed, n_startup_trials=n_startup_trials, multivariate=True, constant_liar=True)
        self._joint = space.distributions()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """All parameters: the space has one shape."""
        del study, trial
        return dict(self._joint)


def sampler_for(
    plan: Seeding, index: int, space: Space, drawn: Parameters | None = None
) -> optuna.samplers.BaseSampler:
    """The sampler of trial `index` (from 0): as a dead process drew it (`drawn`), or as a warm start says, or by TPE
    seeded for this index, whose draws are screened where the plan says so."""
    seed = int(np.random.SeedSequence((plan.seed, index)).generate_state(1)[0])
    with warnings.catch_warnings():  # "experimental" since Optuna 2.4; their behaviour is held by our tests
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = JointSampler(space, seed=seed, n_startup_trials=plan.startup)
        fixed = drawn or (plan.warm_starts[index] if index < len(plan.warm_starts) else None)
        if fixed:
            return optuna.samplers.PartialFixedSampler(fixed, sampler)
    return sampler if plan.screening is None else ScreeningSampler(sampler, plan.screening, seed=seed, turn=index)
