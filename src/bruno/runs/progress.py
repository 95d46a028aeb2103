"""Progress: what a run's log says, as numbers. Models only; `readers` makes them from the human log and from events.jsonl.

A count is raw (`Refusals: x/y`); ratios from a study's storage are never shown as counts. None is "not said yet".
Texts are as the machine said them: a face passes them through `guard.sanitise` before a screen.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, computed_field


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Count(_Frozen):
    """`refused` of `prompts`, as counted."""

    refused: int
    prompts: int

    def __str__(self) -> str:
        return f"{self.refused}/{self.prompts}"


class TrialResult(_Frozen):
    """A scored trial. `trial` counts from 1; `kl` in nats, None when its line is missing."""

    trial: int
    refusals: Count
    kl: float | None = None


class HeldOut(_Frozen):
    """Counts on prompts the search never saw; None for lines that were not printed."""

    before: Count | None = None
    after: Count | None = None
    kl: float | None = None
    ordinary_before: Count | None = None
    ordinary_after: Count | None = None


class Progress(_Frozen):
    """Everything one log says, up to the last whole line."""

    source: str = "log"
    """log, events, or both."""
    trial: int | None = None
    """Number of the last trial that was begun, from 1."""
    trials: int | None = None
    completed: int = 0
    """Trials with a score, or stopped because another is better; those of earlier sessions included."""
    failed_trials: int = 0
    stopped_trials: int = 0
    """Trials that this log has seen stop because another is better in refusals and KL: they have no count."""
    refusals: Count | None = None
    """Of the last scored trial."""
    kl: float | None = None
    """Of the last scored trial."""
    initial_refusals: Count | None = None
    best: TrialResult | None = None
    """Fewest refusals, then least KL, of the trials this log has seen."""
    history: tuple[TrialResult, ...] = ()
    """Every scored trial this log has seen, by number."""
    selected: TrialResult | None = None
    resumed_from: int | None = None
    elapsed_seconds: float | None = None
    remaining_seconds: float | None = None
    model_saved: str | None = None
    """Path on the machine."""
    held_out: HeldOut | None = None
    out_of_memory: int = 0
    """How often memory ran out and the work was tried again."""
    disk_full: bool = False
    killed: bool = False
    """The shell or the kernel says that the process was killed."""
    interrupted: bool = False
    finished: bool = False
    failed: str | None = None
    """The error's own sentence."""
    stage: str = ""
    """The last line that says what is being done."""
    warnings: tuple[str, ...] = ()
    """The last few warnings (fallbacks, notices), oldest first."""
    unreadable: int = 0
    """Lines of events.jsonl that are no whole event, or counts that cannot be (5/4)."""

    @computed_field
    @property
    def state(self) -> str:
        """finished, failed, interrupted, saved, searching, starting, or silent: from the log alone, not from the process."""
        if self.finished:
            return "finished"
        if self.failed is not None or self.killed:
            return "failed"
        if self.interrupted:
            return "interrupted"
        if self.model_saved:
            return "saved"
        if self.trial is not None:
            return "searching"
        return "starting" if self.stage or self.initial_refusals else "silent"


class Disagreement(_Frozen):
    """Two sources, one subject, two statements."""

    subject: str
    source: str
    said: str
    other_source: str
    against: str

    def __str__(self) -> str:
        return f"{self.subject}: the {self.source} says {self.said}, the {self.other_source} says {self.against}"
