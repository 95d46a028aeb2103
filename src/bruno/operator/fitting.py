"""What is known of a model before anything is rented: its metadata read, and the plan denied where it cannot fit.

Reads the hub or a folder through `runs.stored`. A hub that does not answer makes the fit unknown, never an error, where the
settings know the size of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from bruno.errors import Denied, Unreachable
from bruno.guard.plan import Fact
from bruno.operator.resolve import Gpu
from bruno.runs.fit import WORDS, Fit, alternatives, fit, precision_of, workload_of
from bruno.runs.fit_report import Known, known_of, words_of
from bruno.runs.stored import StoredModel, read_stored
from bruno.settings.console import ModelAlias, Settings
from bruno.settings.engine import EngineSettings


@dataclass(frozen=True)
class Fitting:
    """How a model fits the machine of a plan; never "no", which is denied."""

    fit: Fit
    known: Known
    fewer: int | None
    """Trials together that the run is told, where the usual number would not fit."""

    def notes(self) -> tuple[str, ...]:
        """Lines for the card."""
        out = [f"memory: {self.fit.line}"]
        if self.fewer:
            out.append(f"memory: search.trial_batch = {self.fewer}, because {self.known.model} leaves no room for more")
        return tuple(out)

    def facts(self) -> tuple[Fact, ...]:
        """What the plan rests on; None is unknown."""
        fits = True if self.fit.verdict == "fits" else None
        needed = None if self.fit.needed_gb is None else round(self.fit.needed_gb, 1)
        return (
            Fact(name="fits", value=fits, source="arithmetic"),
            Fact(name="gpu_memory_needed_gb", value=needed, source="arithmetic"),
        )


def alias_of(name: str, settings: Settings) -> ModelAlias | None:
    """The settings' entry for a short name or hub id, if there is one. Asks nobody."""
    wanted = name.strip().casefold()
    found = (about for alias, about in settings.models.items() if wanted in (alias.casefold(), about.id.casefold()))
    return next(found, None)


def known_model(name: str, weights_gb: float | None, revision: str = "") -> Known:
    """What the model's own files say of it, or what `weights_gb` says where the hub does not answer.

    Raises:
        InputError: no such model, gated, or broken files.
        Unreachable: the hub does not answer, and `weights_gb` is None.
    """
    try:
        stored = read_stored(name, revision)
    except Unreachable as error:
        if weights_gb is None:
            raise
        stored = StoredModel(name, problem=error.message)
    return known_of(stored, weights_gb)


def fit_for(about: ModelAlias, gpu: Gpu, count: int, settings: Settings, engine: EngineSettings) -> Fitting:
    """How the model fits `count` of this GPU with the run's own settings.

    Raises:
        Denied: it cannot, with the arithmetic and what would; or its files cannot be edited.
        InputError: no such model, gated, or broken files.
    """
    known = known_model(about.id, about.weights_gb, engine.revision)
    if known.weights and known.weights.refused:
        raise Denied(
            f"{about.id} cannot be reshaped", fix=known.weights.refused[:1].upper() + known.weights.refused[1:]
        )
    work = workload_of(engine)
    found = fit(
        known.weights,
        known.shape,
        work,
        gpu=gpu.name,
        memory_gb=gpu.about.memory_gb,
        count=count,
        precision=precision_of(engine, known.weights),
        why=known.problem,
    )
    if found.verdict == "no":
        memory = {name: each.memory_gb for name, each in settings.gpus.items()}
        raise Denied(f"{about.id} {found.line}", fix=_instead(known, found, memory, engine))
    usual = work.trial_batch
    fewer = found.trial_batch if found.trial_batch is not None and found.trial_batch < usual else None
    return Fitting(found, known, fewer)


def _instead(known: Known, refused: Fit, memory: dict[str, float], engine: EngineSettings) -> str:
    """What would fit, in one sentence."""
    found = alternatives(known.weights, known.shape, workload_of(engine), refused=refused, gpus=memory)
    if not found:
        return "Nothing known here is certain to hold it; bruno fit shows the arithmetic"
    said = [words_of(each) for each in found]
    quantised = next((each for each in found if each.precision in ("int8", "nf4")), None)
    how = f"; {WORDS[quantised.precision]} is loading.quantization = {quantised.precision}" if quantised else ""
    return f"What would fit: {', or '.join(said)}{how}"
