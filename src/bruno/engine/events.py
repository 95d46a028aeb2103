"""What the engine reports: one pydantic model for each fact, each able to say itself as lines for a person.

Pure: no torch, no files, no clock but the stamp of creation. The same event becomes human lines (`lines()`) and one
JSON object (`model_dump_json()`); `log.py` writes both, so the two can never tell different stories. Readers on other
machines import `parse_event` and get the same types back.

The wording of the lines is a contract (see "The log" in the engine's documentation): older tools print it too, and
people grep for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


def duration(seconds: float) -> str:
    """`3780` -> `1h 3m`, `125` -> `2m 5s`, `7` -> `7s`: the two largest units, rounded down."""
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def number(value: float | int | str) -> str:
    """A parameter's value as the log shows it: four significant digits, words as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Event(BaseModel):
    """A fact of the run. `time` is UTC with its offset, to the millisecond."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    time: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def lines(self) -> list[str]:
        """The human lines of this event, without line ends; none for facts that only readers of JSON need."""
        return []


class RunStarted(_Event):
    """The first event of every start of the engine in a run folder."""

    kind: Literal["run_started"] = "run_started"
    version: str
    model: str
    behaviour: str
    out: str
    seed: int
    pid: int
    settings: dict[str, object] = Field(default_factory=dict)

    def lines(self) -> list[str]:
        return [
            f"bruno engine {self.version}: removing {self.behaviour} from {self.model}",
            f"* Run folder: {self.out} (seed {self.seed}, process {self.pid})",
        ]


class Notice(_Event):
    """A sentence worth knowing: a step that begins, what was measured, a default that was taken."""

    kind: Literal["notice"] = "notice"
    text: str
    level: Literal["info", "warning"] = "info"

    def lines(self) -> list[str]:
        return [f"* Warning: {self.text}" if self.level == "warning" else f"* {self.text}"]


class Fallback(_Event):
    """Something asked for did not work and the run continues with something else: never silent."""

    kind: Literal["fallback"] = "fallback"
    method: str
    reason: str
    instead: str

    def lines(self) -> list[str]:
        return [f"* Warning: {self.method} did not work ({self.reason}); continuing with {self.instead}"]


class ModelLoaded(_Event):
    """The model is in memory and its logits are finite."""

    kind: Literal["model_loaded"] = "model_loaded"
    model: str
    family: str
    layers: int
    hidden_size: int
    dtype: str
    device: str
    seconds: float

    def lines(self) -> list[str]:
        shape = f"{self.family}, {self.layers} layers x {self.hidden_size}, {self.dtype} on {self.device}"
        return [f"* Loaded {self.model}: {shape} ({duration(self.seconds)})"]


class InitialScores(_Event):
    """The untouched model's answers to the search prompts: raw count, never a ratio."""

    kind: Literal["initial_scores"] = "initial_scores"
    refusals: int
    prompts: int

    def lines(self) -> list[str]:
        return [f"* Initial refusals: {self.refusals}/{self.prompts}"]


class Resumed(_Event):
    """The study already holds finished trials. `next_trial` counts from 1."""

    kind: Literal["resumed"] = "resumed"
    next_trial: int
    completed: int

    def lines(self) -> list[str]:
        return [f"Resuming from trial {self.next_trial} ({self.completed} completed trials found)"]


class TrialStarted(_Event):
    """A trial's block begins.

    Everything up to its `TrialScored`, `TrialStopped` or `TrialFailed` belongs to it. `trial` counts from 1.
    """

    kind: Literal["trial_started"] = "trial_started"
    trial: int
    trials: int
    parameters: dict[str, float | int | str]

    def lines(self) -> list[str]:
        values = [f"  * {name} = {number(value)}" for name, value in self.parameters.items()]
        return [f"Running trial {self.trial} of {self.trials}...", *values]


class TrialScored(_Event):
    """A finished trial: first-token KL(base || edited) in nats, and the raw refusal count."""

    kind: Literal["trial_scored"] = "trial_scored"
    trial: int
    refusals: int
    prompts: int
    kl: float
    kl_tokens: float | None = None
    """KL over `scoring.kl_divergence_tokens` positions, when more than one was asked for."""

    def lines(self) -> list[str]:
        several = [] if self.kl_tokens is None else [f"  * KL over several tokens: {self.kl_tokens:.4f}"]
        return [f"  * KL divergence: {self.kl:.4f}", *several, f"  * Refusals: {self.refusals}/{self.prompts}"]


class TrialStopped(_Event):
    """A trial that another beats in refusals and KL at once, whatever was left to read: no count, a lower bound."""

    kind: Literal["trial_stopped"] = "trial_stopped"
    trial: int
    at_least: int
    prompts: int
    kl: float
    kl_tokens: float | None = None
    excess: float
    """KL above that of the better trial, nats."""
    better: int
    """Number of that trial."""

    def lines(self) -> list[str]:
        several = [] if self.kl_tokens is None else [f"  * KL over several tokens: {self.kl_tokens:.4f}"]
        counted = f"at least {self.at_least}/{self.prompts} (stopped: trial {self.better} is better)"
        return [f"  * KL divergence: {self.kl:.4f}", *several, f"  * Refusals: {counted}"]


class TrialFailed(_Event):
    """A trial without a score: recorded as failed, and the study goes on."""

    kind: Literal["trial_failed"] = "trial_failed"
    trial: int
    reason: str

    def lines(self) -> list[str]:
        return [f"  * Trial {self.trial} failed: {self.reason}"]


class Progress(_Event):
    """Time since this process started searching and the time left, from this process's own trials only."""

    kind: Literal["progress"] = "progress"
    completed: int
    trials: int
    elapsed_seconds: float
    remaining_seconds: float

    def lines(self) -> list[str]:
        return [
            f"Elapsed time: {duration(self.elapsed_seconds)}",
            f"Estimated remaining time: {duration(self.remaining_seconds)}",
        ]


class OutOfMemory(_Event):
    """Memory ran out (of a GPU, or of the machine); the work is tried again in smaller pieces."""

    kind: Literal["out_of_memory"] = "out_of_memory"
    attempt: int
    attempts: int

    def lines(self) -> list[str]:
        return [f"GPU OOM detected (attempt {self.attempt}/{self.attempts})"]


class Interrupted(_Event):
    """The run was asked to end (Ctrl-C, SIGTERM) and did, after the batch under way; everything is saved."""

    kind: Literal["interrupted"] = "interrupted"
    completed: int
    trials: int

    def lines(self) -> list[str]:
        return [f"Interrupted: {self.completed} of {self.trials} trials are saved; the same command goes on from there"]


class TrialSelected(_Event):
    """The choice, and the rule it was made by. `trial` counts from 1."""

    kind: Literal["trial_selected"] = "trial_selected"
    trial: int
    refusals: int
    prompts: int
    kl: float
    rule: str

    def lines(self) -> list[str]:
        scores = f"(Refusals: {self.refusals}/{self.prompts}, KL divergence: {self.kl:.4f})"
        return [f"Auto-selecting trial {self.trial} {scores}", f"* Chosen by: {self.rule}"]


class ModelSaved(_Event):
    """A whole model folder lies at `path`: renamed into place after it was verified."""

    kind: Literal["model_saved"] = "model_saved"
    path: str

    def lines(self) -> list[str]:
        return [f"Models Saved: {self.path}"]


class Counted(BaseModel):
    """One more count of the held-out report: raw, before and after, of so many prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str
    before: int
    after: int
    prompts: int

    def line(self, what: str) -> str:
        """As the log has it."""
        return f"* {what} {self.name}: {self.before}/{self.prompts} before, {self.after}/{self.prompts} after ({self.about})"


class HeldOut(_Event):
    """Scores on prompts that neither the directions nor the search have seen.

    Intervals are Wilson's, 95 %, as shares of 1.
    """

    kind: Literal["held_out"] = "held_out"
    before: int
    after: int
    prompts: int
    before_interval: tuple[float, float]
    after_interval: tuple[float, float]
    kl: float
    kl_tokens: float | None = None
    """KL over `scoring.kl_divergence_tokens` positions, when more than one was asked for."""
    kl_answered: float | None = None
    """KL on the ordinary prompts that the original answers, where it refuses some: there the edit is meant to change it."""
    ordinary_before: int
    ordinary_after: int
    ordinary_prompts: int
    evaluations: list[Counted] = []
    """The behaviour's evaluation sets."""
    opinions: list[Counted] = []
    """Second opinions on the same answers, each with the question that it was asked."""

    def lines(self) -> list[str]:
        def share(interval: tuple[float, float]) -> str:
            return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"

        answered = self.ordinary_prompts - self.ordinary_before
        return [
            f"* Held-out refusals before: {self.before}/{self.prompts} (95 % interval {share(self.before_interval)})",
            f"* Held-out refusals after: {self.after}/{self.prompts} (95 % interval {share(self.after_interval)})",
            f"* Held-out KL divergence: {self.kl:.4f}",
            *(
                []
                if self.kl_answered is None
                else [
                    f"* Held-out KL on the {answered} ordinary prompts that the original answers: {self.kl_answered:.4f}"
                ]
            ),
            *([] if self.kl_tokens is None else [f"* Held-out KL over several tokens: {self.kl_tokens:.4f}"]),
            f"* Ordinary prompts refused: {self.ordinary_before}/{self.ordinary_prompts} before, "
            f"{self.ordinary_after}/{self.ordinary_prompts} after",
            *(each.line("Held-out set") for each in self.evaluations),
            *(each.line("Second opinion by") for each in self.opinions),
        ]


class Failed(_Event):
    """The run ends without its result. `kept` says what is safe and how to go on."""

    kind: Literal["failed"] = "failed"
    message: str
    kept: str = ""

    def lines(self) -> list[str]:
        return [f"Error: {self.message}", *([f"* {self.kept}"] if self.kept else [])]


class Finished(_Event):
    """The last event of a run that did all it was asked to do."""

    kind: Literal["finished"] = "finished"
    seconds: float

    def lines(self) -> list[str]:
        return ["Optimization finished!"]


Event = Annotated[
    RunStarted
    | Notice
    | Fallback
    | ModelLoaded
    | InitialScores
    | Resumed
    | TrialStarted
    | TrialScored
    | TrialStopped
    | TrialFailed
    | Progress
    | OutOfMemory
    | Interrupted
    | TrialSelected
    | ModelSaved
    | HeldOut
    | Failed
    | Finished,
    Field(discriminator="kind"),
]
"""Any event, told apart by its `kind`."""

Emit = Callable[[_Event], None]
"""What every stage takes to report: an `Emitter`, or a list's `append` in tests."""

_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """One line of `events.jsonl` -> its event.

    Raises:
        pydantic.ValidationError: the line is not a whole event (cut short by a crash, or written by something else).
    """
    return _adapter.validate_json(line)
