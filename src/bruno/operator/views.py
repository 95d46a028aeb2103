"""What the faces show: plain data, already sanitised, the same for the console, the command line and `--json`.

A face draws these and nothing else; it computes no cost, judges no state and reads no log. Every model dumps to JSON.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bruno.guard.decision import Decision
from bruno.guard.plan import Plan
from bruno.intents import Clarification


class _View(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RunState(StrEnum):
    """Where a run stands. UNKNOWN is said when it is not known, never guessed."""

    PLANNED = "planned"
    RENTING = "renting"
    STARTING = "starting"
    INSTALLING = "installing"
    SEARCHING = "searching"
    SAVING = "saving"
    COPYING = "copying home"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"

    @property
    def glyph(self) -> str:
        return {"done": "✔", "failed": "✘", "stopped": "■", "unknown": "?", "planned": "○"}.get(self.value, "▶")

    @property
    def live(self) -> bool:
        return self not in (RunState.DONE, RunState.FAILED, RunState.STOPPED, RunState.PLANNED)


class TrialView(_View):
    """One finished trial, raw."""

    number: int
    refusals: int
    prompts: int
    kl: float | None


class WorkerView(_View):
    """One instance of a run over several."""

    number: int
    """From 1; the first makes the study and the model."""
    run_id: str
    """Of its own row and folder of logs."""
    instance_id: int | None
    label: str
    gpu: str
    state: RunState
    step: str
    scored: int
    """Trials that its own log scores."""
    last: TrialView | None
    spent: float | None
    per_hour: float | None
    problem: str
    read_at: datetime | None


class RunView(_View):
    """A run as its records and its log tell it; one over several instances as the logs of all its workers do."""

    run_id: str
    name: str
    model: str
    gpu: str
    state: RunState
    step: str = ""
    """What is being done now, in words."""
    instance_id: int | None = None
    label: str = ""
    trial: int | None = None
    trials: int | None = None
    initial: tuple[int, int] | None = None
    """Refusals before any edit: count, of how many."""
    last: TrialView | None = None
    best: TrialView | None = None
    history: tuple[TrialView, ...] = ()
    """Trials that have a count."""
    stopped_trials: int = 0
    """Trials that another had beaten before their answers were read to the end: they have no count."""
    failed_trials: int = 0
    elapsed_seconds: float | None = None
    remaining_seconds: float | None = None
    spent: float | None = None
    """US dollars so far; None is unknown."""
    per_hour: float | None = None
    model_saved: str | None = None
    """Path on the machine, from the log's own line."""
    local_model: str | None = None
    """Folder at home once it was copied and its hashes agree."""
    problem: str = ""
    """One line: what went wrong and what to do."""
    discrepancies: tuple[str, ...] = ()
    read_at: datetime | None = None
    """When the log was last read; older than a few polls is shown as stale."""
    log_tail: tuple[str, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    """Of a run over several instances; `trial` is then how many trials have their result, `spent` and `per_hour` are the sums."""


class InstanceView(_View):
    """One row of the provider's list."""

    instance_id: int
    label: str
    status: str
    intended: str
    gpu: str
    gpu_count: int
    gpu_utilisation: float | None
    disk_gb: float | None
    disk_used_gb: float | None
    per_hour: float | None
    stopped_per_day: float | None
    ssh: str
    age_seconds: float | None
    run_id: str | None
    """The run of ours that rented it; None: not bruno's."""


class InstancesView(_View):
    """The provider's list. `known` False: it could not be read, and nothing may be concluded from it."""

    known: bool
    problem: str = ""
    rows: tuple[InstanceView, ...] = ()
    read_at: datetime | None = None
    credit: float | None = None


class OfferView(_View):
    offer_id: int
    gpu: str
    gpu_count: int
    gpu_memory_gb: float | None
    per_hour: float
    disk_gb: float
    reliability: float | None
    location: str
    download_mbps: float | None


class Answer(_View):
    """Words, perhaps with a table's rows already worded."""

    kind: Literal["answer"] = "answer"
    text: str
    rows: tuple[tuple[str, ...], ...] = ()
    """First row: column heads."""
    suggestions: tuple[str, ...] = ()
    failed: bool = False
    exit_code: int | None = None
    """What the command line exits with: a shell line's own, or why something failed; None is 0, or 1 where `failed`."""


class Ask(_View):
    """The request has two meanings: show the options, take a letter, call `Operator.choose`."""

    kind: Literal["ask"] = "ask"
    clarification: Clarification


class Card(_View):
    """A plan with the guard's decision. `confirm` waits for the word, `deny` only shows, `allow` may go straight on."""

    kind: Literal["card"] = "card"
    plan: Plan
    decision: Decision
    origin_words: str = ""
    """What the person typed."""
    proposed_by_assistant: bool = False

    @property
    def is_shell_line(self) -> bool:
        """Whether it runs a shell line: what follows is that line's output, not a run's progress."""
        return any(step.action.verbatim() for step in self.plan.steps)

    def lines(self) -> tuple[str, ...]:
        """The card as text, from the plan object alone (see `operator.card`)."""
        from bruno.operator.card import lines

        return lines(self)


class Progress(_View):
    kind: Literal["progress"] = "progress"
    runs: tuple[RunView, ...]


class Instances(_View):
    kind: Literal["instances"] = "instances"
    view: InstancesView


class Offers(_View):
    kind: Literal["offers"] = "offers"
    rows: tuple[OfferView, ...]


class Talk(_View):
    """Open a conversation with this local model (`beside` it the original, when known)."""

    kind: Literal["talk"] = "talk"
    model: str
    beside: str | None = None


class Watch(_View):
    """Follow this run: call `Operator.carry_on(run_id, ...)`."""

    kind: Literal["watch"] = "watch"
    run_id: str
    retry: bool = False
    """Launch the engine again although it failed or died (its search goes on from its own study)."""


Reply = Annotated[Answer | Ask | Card | Progress | Instances | Offers | Talk | Watch, Field(discriminator="kind")]


class Happening(_View):
    """Something that happened while a plan is carried out; the faces append it to their log."""

    at: datetime
    level: Literal["quiet", "info", "good", "warn", "bad", "output"] = "info"
    """quiet: a view has changed (new log lines, progress); nothing to add to the conversation. output: a line that a shell line
    printed, sanitised, its blanks kept."""
    text: str
    run_id: str | None = None
    stream: Literal["stdout", "stderr"] = "stdout"
    """Of output."""
