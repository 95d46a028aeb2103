"""What one edit costs and gains, as numbers. Imports no torch: the study, reports and the menu read nothing else."""

from __future__ import annotations

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
