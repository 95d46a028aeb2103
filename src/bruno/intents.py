"""What a person can ask for. The one vocabulary of the grammar, the assistant, the command line and the console.

An intent says *what is wanted*, in the person's own terms (an alias, a GPU's name, "it"); it names no price and no target
that a machine chose. `operator` resolves it to a plan. Every model is strict and refuses unknown fields, because a language
model may have written it. Words with two meanings become a `Clarification`: nothing guesses.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Intent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class StartRun(_Intent):
    """Rent, install, search, save: the main job."""

    kind: Literal["start_run"] = "start_run"
    model: Name
    """An alias of config.toml, a hub id, or `demo`."""
    gpu: str | None = Field(default=None, max_length=60)
    """A GPU's name; None takes the model's usual one."""
    count: int = Field(default=1, ge=1, le=16)
    """GPUs on each instance ("2 x H200")."""
    instances: int = Field(default=1, ge=1, le=16)
    """Instances to rent; with several, a worker runs on each and they search one study ("on 4 instances")."""
    gpus_in_all: int | None = Field(default=None, ge=2, le=16)
    """GPUs of which it was not said whether one instance has them all or each instance its own ("on 4 H200s"): asked back."""
    workers: int | None = Field(default=None, ge=1, le=16)
    """Workers, when a number of them was said ("with 4 workers"). Where they run is asked back unless it is clear."""
    disk_gb: float | None = Field(default=None, gt=0, le=100_000)
    """Disk of each instance that the person asked for; None takes what the model needs."""
    max_dph: float | None = Field(default=None, gt=0)
    """Ceiling on the full price, $/h with disk, all instances together."""
    trials: int | None = Field(default=None, ge=1, le=100_000)
    behaviour: str | None = Field(default=None, max_length=200)


class StopInstance(_Intent):
    """Stop one instance (its disk stays and is billed)."""

    kind: Literal["stop_instance"] = "stop_instance"
    target: str | None = Field(default=None, max_length=256)
    """Instance id, label or run name; None means "it": the one run there is, never the first in a list."""


class DestroyInstance(_Intent):
    """Delete one instance and its disk. Cannot be undone."""

    kind: Literal["destroy_instance"] = "destroy_instance"
    target: str | None = Field(default=None, max_length=256)


class WatchRun(_Intent):
    """Let a run go on and follow it."""

    kind: Literal["watch_run"] = "watch_run"
    target: str | None = Field(default=None, max_length=256)


class ShowProgress(_Intent):
    kind: Literal["show_progress"] = "show_progress"
    target: str | None = Field(default=None, max_length=256)


class ShowInstances(_Intent):
    kind: Literal["show_instances"] = "show_instances"


class ShowRuns(_Intent):
    kind: Literal["show_runs"] = "show_runs"


class ShowOffers(_Intent):
    kind: Literal["show_offers"] = "show_offers"
    gpu: str | None = Field(default=None, max_length=60)
    count: int = Field(default=1, ge=1, le=16)
    max_dph: float | None = Field(default=None, gt=0)


class ShowCosts(_Intent):
    kind: Literal["show_costs"] = "show_costs"


class FetchModel(_Intent):
    """Copy a run's saved model home."""

    kind: Literal["fetch_model"] = "fetch_model"
    target: str | None = Field(default=None, max_length=256)


class ChatWith(_Intent):
    """Talk to a local model."""

    kind: Literal["chat_with"] = "chat_with"
    model: str | None = Field(default=None, max_length=1024)


class ResumeRun(_Intent):
    """Take up a run where its records leave it."""

    kind: Literal["resume_run"] = "resume_run"
    target: str | None = Field(default=None, max_length=256)


class StopEverything(_Intent):
    """STOP: cancel what can be cancelled safely, start nothing new, say what is left running and what it costs."""

    kind: Literal["stop_everything"] = "stop_everything"


class SetConstraint(_Intent):
    """An instruction that later plans are checked against: "don't stop it", "use the H200", "under 3 $/h"."""

    kind: Literal["set_constraint"] = "set_constraint"
    rule: Literal["no_stop", "no_destroy", "gpu_only", "max_dph", "max_total", "no_new_instances"]
    value: str | float | None = None
    words: str = Field(max_length=500)
    """What the person said, shown beside the rule."""


class LiftConstraint(_Intent):
    """Take an instruction back."""

    kind: Literal["lift_constraint"] = "lift_constraint"
    number: int | None = Field(default=None, ge=1)
    """As listed by `show_constraints`; None: the only one there is."""


class ShowConstraints(_Intent):
    kind: Literal["show_constraints"] = "show_constraints"


class ReportTrouble(_Intent):
    """The person saw something ("it looks stuck", "refusals are not 0"): evidence is gathered, never "it's fine"."""

    kind: Literal["report_trouble"] = "report_trouble"
    words: str = Field(max_length=2000)
    target: str | None = Field(default=None, max_length=256)


class ResolveConcern(_Intent):
    """The person says what it was that they reported ("resolved: ..."): the concern is closed and its hold lifted."""

    kind: Literal["resolve_concern"] = "resolve_concern"
    words: str = Field(min_length=1, max_length=2000)
    number: int | None = Field(default=None, ge=1)
    """As listed by `show_concerns`; None: the only one there is."""


class ShowConcerns(_Intent):
    """What was reported and is not resolved, and what is on hold because of it."""

    kind: Literal["show_concerns"] = "show_concerns"


class RunCommand(_Intent):
    """Run one shell line on a rented instance. Exactly the line that was said: nothing is added, quoted or left out."""

    kind: Literal["run_command"] = "run_command"
    command: str = Field(min_length=1, max_length=8192)
    target: str | None = Field(default=None, max_length=256)
    """Instance id, label or run name; None means the one running instance of bruno's there is."""
    seconds: float | None = Field(default=None, gt=0, le=86_400)
    """It is ended after so long; None takes `guard.command_seconds`."""

    @field_validator("command")
    @classmethod
    def _runs(cls, command: str) -> str:
        if "\x00" in command or not command.strip():
            raise ValueError("a shell line has something in it, and no NUL")
        return command


class ShowHelp(_Intent):
    kind: Literal["show_help"] = "show_help"


Intent = Annotated[
    StartRun
    | StopInstance
    | DestroyInstance
    | WatchRun
    | ShowProgress
    | ShowInstances
    | ShowRuns
    | ShowOffers
    | ShowCosts
    | FetchModel
    | ChatWith
    | ResumeRun
    | StopEverything
    | SetConstraint
    | LiftConstraint
    | ShowConstraints
    | ReportTrouble
    | ResolveConcern
    | ShowConcerns
    | RunCommand
    | ShowHelp,
    Field(discriminator="kind"),
]
intent_adapter: TypeAdapter[Intent] = TypeAdapter(Intent)

PERSON_ONLY = frozenset({"lift_constraint", "resolve_concern", "resume_run", "run_command"})
"""What takes a guard down, starts a program again or runs a shell line, some of it without a card to confirm: only the person's
own words say it. A language model may not propose it, alone or as a reading of a question."""


class Option(_Intent):
    """One lettered reading of an ambiguous request."""

    letter: Literal["A", "B", "C", "D", "E", "F"]
    text: str
    consequence: str
    """What would happen, in plain words: what ends, what it costs, whether it can be undone."""
    intent: Intent


class Clarification(_Intent):
    """A question with lettered options and no default. Choosing a destructive option still leads to its own `yes`."""

    kind: Literal["clarification"] = "clarification"
    question: str
    options: tuple[Option, ...] = Field(min_length=2)


class NotUnderstood(_Intent):
    """No reading was found. `suggestions` are phrases that would be understood."""

    kind: Literal["not_understood"] = "not_understood"
    words: str
    suggestions: tuple[str, ...] = ()


Understanding = Intent | Clarification | NotUnderstood
