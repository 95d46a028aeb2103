"""What has been said so far, kept by either reader of a run's log and drawn as a frozen `Progress`. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bruno.runs.progress import Count, HeldOut, Progress, TrialResult

WARNINGS_KEPT = 8


@dataclass
class Tally:
    """One run's story. The methods are what a log can say; both readers call the same ones."""

    source: str
    trial: int | None = None
    trials: int | None = None
    scores: dict[int, TrialResult] = field(default_factory=dict)
    failed_trials: set[int] = field(default_factory=set)
    stopped_trials: set[int] = field(default_factory=set)
    last: TrialResult | None = None
    initial: Count | None = None
    selected: TrialResult | None = None
    resumed_from: int | None = None
    completed_before: int = 0
    completed_now: set[int] = field(default_factory=set)
    elapsed: float | None = None
    remaining: float | None = None
    saved: str | None = None
    held_out: HeldOut | None = None
    out_of_memory: int = 0
    disk_full: bool = False
    killed: bool = False
    interrupted: bool = False
    finished: bool = False
    failed: str | None = None
    stage: str = ""
    warnings: list[str] = field(default_factory=list)
    unreadable: int = 0

    def restart(self) -> None:
        """The engine was started again: how the last process ended no longer counts, what its trials scored does.

        A saved model is forgotten too: whether one is there is asked of the disk, and "not known" is the safe side.
        """
        self.finished = self.interrupted = self.killed = self.disk_full = False
        self.failed = self.saved = self.resumed_from = self.elapsed = self.remaining = self.trial = None
        self.out_of_memory = 0
        self.completed_before, self.completed_now = 0, set()

    def resumed(self, next_trial: int, completed: int) -> None:
        self.resumed_from, self.completed_before, self.completed_now = next_trial, completed, set()

    def begin(self, trial: int, trials: int) -> None:
        """A trial's block begins. Trial 1 without a resume is a new study: older scores belong to another."""
        if trial == 1 and self.resumed_from is None and not self.completed_now:
            self.scores, self.last, self.failed_trials, self.stopped_trials = {}, None, set(), set()
        self.trial, self.trials = trial, trials

    def score(self, trial: int, refusals: Count, kl: float | None) -> None:
        kl = kl if kl is not None and math.isfinite(kl) else None
        self.last = self.scores[trial] = TrialResult(trial=trial, refusals=refusals, kl=kl)
        self.completed_now.add(trial)
        self.failed_trials.discard(trial)

    def stop(self, trial: int) -> None:
        """The trial was not read to its end, because another is better: it has its result, and no count."""
        self.stopped_trials.add(trial)
        self.completed_now.add(trial)

    def warn(self, text: str) -> None:
        self.warnings = [*self.warnings, text][-WARNINGS_KEPT:]

    def snapshot(self) -> Progress:
        """The story so far, frozen."""
        return Progress(
            source=self.source,
            trial=self.trial,
            trials=self.trials,
            completed=self.completed_before + len(self.completed_now),
            failed_trials=len(self.failed_trials),
            stopped_trials=len(self.stopped_trials),
            refusals=self.last.refusals if self.last else None,
            kl=self.last.kl if self.last else None,
            initial_refusals=self.initial,
            best=min(self.scores.values(), key=_rank, default=None),
            history=tuple(self.scores[number] for number in sorted(self.scores)),
            selected=self.selected,
            resumed_from=self.resumed_from,
            elapsed_seconds=self.elapsed,
            remaining_seconds=self.remaining,
            model_saved=self.saved,
            held_out=self.held_out,
            out_of_memory=self.out_of_memory,
            disk_full=self.disk_full,
            killed=self.killed,
            interrupted=self.interrupted,
            finished=self.finished,
            failed=self.failed,
            stage=self.stage,
            warnings=tuple(self.warnings),
            unreadable=self.unreadable,
        )


def _rank(result: TrialResult) -> tuple[int, float, int]:
    """Fewest refusals, then least KL (an absent one last), then the earlier trial."""
    return result.refusals.refused, math.inf if result.kl is None else result.kl, result.trial


def count(refused: int, prompts: int) -> Count | None:
    """A raw count, or None for what cannot be one (5/4, 0/0)."""
    return Count(refused=refused, prompts=prompts) if 0 <= refused <= prompts and prompts > 0 else None
