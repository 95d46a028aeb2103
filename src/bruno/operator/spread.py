"""One machine or several? Words that say a number without saying of what become a question; several need a database.

Reads settings and asks whether the database answers; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bruno.errors import Denied, InputError
from bruno.intents import Clarification, Option, StartRun
from bruno.operator.resolve import find_gpu, find_model
from bruno.runs.database import Database, address_of, answers, shared
from bruno.settings.console import Settings

PLAYBOOK = "workers"
"""The shipped procedure of a run over several instances."""
WAIT_SECONDS = 3600
"""How long a worker waits for the first one to make the study: that one may still be downloading the model."""


@dataclass(frozen=True)
class Spread:
    """How a run over several instances hangs together."""

    instances: int
    database: Database

    def notes(self) -> tuple[str, ...]:
        """Lines for the card."""
        return (
            f"study: one for all, in {self.database.address}, which answers from here",
            "study: the first worker makes it, chooses and saves the model, which comes home; the others only search",
        )


def question(intent: StartRun, settings: Settings) -> Clarification | None:
    """The lettered readings of a number that was not said to be of instances or of GPUs; None when the words are clear.

    Raises:
        InputError: numbers that do not go together, or an unknown model or GPU (asked about before the question is).
    """
    _sensible(intent)
    if intent.gpus_in_all is None and (intent.workers is None or intent.workers == 1 or _placed(intent)):
        return None
    gpu = find_gpu(intent.gpu or find_model(intent.model, settings).about.gpu or "h200", settings).name.upper()
    many = intent.gpus_in_all or intent.workers or 2
    spread = intent.workers if intent.workers and intent.workers > 1 else many
    each = max(1, many // spread)
    apart = intent.model_copy(update={"instances": spread, "count": each, "gpus_in_all": None, "workers": None})
    together = intent.model_copy(update={"count": many, "gpus_in_all": None})
    options = (
        Option(
            letter="A",
            text=f"{spread} instances with {each if each > 1 else 'one'} {gpu} each, a worker on each",
            consequence=f"{spread} rentals under one yes, each billed until it is stopped; the others go on when one is lost. "
            f"{_kept(settings)}",
            intent=apart,
        ),
        Option(
            letter="B",
            text=f"one instance with {many} x {gpu}" + (f", {intent.workers} workers on it" if intent.workers else ""),
            consequence="one rental; if it is lost, all of it is. "
            + ("No database is needed" if intent.workers else "One search: the model is spread over its GPUs"),
            intent=together,
        ),
    )
    said = f"{intent.workers} workers" if intent.gpus_in_all is None else f"{many} x {gpu}"
    return Clarification(question=f"{said}: on how many instances?", options=options)


def spread_of(intent: StartRun, settings: Settings, *, local: bool) -> Spread | None:
    """How the instances share their study; None for a run on one instance. Asks whether the database answers.

    Args:
        local: the provider's instances run on this computer (the sandbox).

    Raises:
        InputError: no PostgreSQL database is set, or one that instances cannot reach.
        Denied: nothing answers there.
    """
    if intent.instances == 1:
        return None
    database = shared(settings.search.storage, local=local)
    answers(database)
    return Spread(intent.instances, database)


def _sensible(intent: StartRun) -> None:
    workers, instances = intent.workers, intent.instances
    if instances > 1 and workers is not None and workers != instances:
        raise InputError(
            f"{workers} workers do not go on {instances} instances: one worker runs on each",
            fix=f"Say {instances} instances, or {workers} instances",
        )
    if intent.gpus_in_all and workers and intent.gpus_in_all % workers:
        raise InputError(
            f"{intent.gpus_in_all} GPUs cannot be shared out to {workers} workers evenly",
            fix="Say how many instances, and how many GPUs on each",
        )
    if instances == 1 and intent.gpus_in_all is None and workers and intent.count > 1 and workers > intent.count:
        raise InputError(
            f"{workers} workers need {workers} GPUs, and {intent.count} were asked for", fix="A worker takes one GPU"
        )


def _placed(intent: StartRun) -> bool:
    """Whether it is clear where the workers run: one on each instance, or several on one instance's GPUs."""
    return intent.instances > 1 or intent.count > 1


def _kept(settings: Settings) -> str:
    """What the database of the first reading is, or that there is none."""
    try:
        return f"Their study is kept in {shared(settings.search.storage, local=True).address}"
    except (InputError, Denied):
        now = address_of(settings.search.storage).address
        have = f"search.storage is {now}" if now else "search.storage is not set"
        return f"It needs a PostgreSQL database that all of them reach: {have}"
