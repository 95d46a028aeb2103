"""What one edit costs and gains, as numbers, and which edits no number can save. Imports no torch: the study, reports and
the menu read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """What one edit costs and gains.

    Attributes:
        refusals: raw count of bad prompts still refused, 0 to `prompts`.
        prompts: how many bad prompts were answered.
        kl: KL(base || edited) of the first answer token on the good prompts, nats, mean over prompts.
        kl_tokens: the same over several positions of the base's own answers; None when one was asked for.
    """

    refusals: int
    prompts: int
    kl: float
    kl_tokens: float | None = None

    @property
    def rate(self) -> float:
        """Share of the prompts refused, 0 to 1."""
        return self.refusals / self.prompts


@dataclass(frozen=True)
class Stopped:
    """A trial that was not read to its end, because another is better in refusals and KL at once whatever was left to read.

    Its refusals are a lower bound, never a count: it is no `Scores`, and nothing chooses it.

    Attributes:
        at_least: bad prompts that it was seen to refuse before it stopped; 0 where its KL alone was enough.
        prompts: how many bad prompts there are.
        kl: as in `Scores`, measured in full.
        excess: its KL above that of the better trial, nats; more than 0.
        better: number of the better trial, from 1.
        kl_tokens: as in `Scores`.
    """

    at_least: int
    prompts: int
    kl: float
    excess: float
    better: int
    kl_tokens: float | None = None


@dataclass(frozen=True)
class Glance:
    """What forward passes alone say of an edit.

    Attributes:
        kl: as in `Scores`, nats; exact.
        opening: mean over the bad prompts of log p(first token of the base model's refusal), nats; at most 0.
        expected: sum of those probabilities: refusals, if every answer that begins as a refusal became one and no other.
    """

    kl: float
    opening: float
    expected: float


Known = tuple[int, Scores]
"""A trial that was scored before: its number, from 1, and its scores."""


def better_trial(kl: float, known: Sequence[Known]) -> Known | None:
    """Of the known trials with less KL than this one (nats) the one with the fewest refusals.

    As soon as the trial of KL `kl` has as many refusals as that one, it can be neither on the front nor chosen: it is
    beaten in KL, and not better in refusals. With 0 refusals known, its KL alone decides.
    """
    able = [(scores.refusals, scores.kl, number) for number, scores in known if scores.kl < kl]
    if not able:
        return None
    best = min(able)
    return next(each for each in known if each[0] == best[2])
