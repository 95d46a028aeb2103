"""Everything that can be said of a model before a machine is rented: weights, memory, disk, time. As data, and as lines.

Pure; `runs.stored` has read what this counts. Unknown stays unknown and says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from bruno.errors import BrunoError
from bruno.guard.disk import disk_needed
from bruno.guard.rules import DiskRules
from bruno.runs.constants import constants
from bruno.runs.fit import PRECISIONS, WORDS, Fit, Workload, capture_gb, fit, workload_of
from bruno.runs.money import estimate
from bruno.runs.shape import Shape, shape_of
from bruno.runs.stored import StoredModel
from bruno.runs.weights import Weights, told, weights_of
from bruno.settings.engine import EngineSettings


class Known(BaseModel):
    """What is known of a model: its weights and its shape, each None with a reason where it is not."""

    model_config = ConfigDict(frozen=True)
    model: str
    weights: Weights | None = None
    shape: Shape | None = None
    problem: str = ""
    """Why something is unknown; "" when all is known."""


class Duration(BaseModel):
    """Time and price of a run on one GPU; None is unknown."""

    model_config = ConfigDict(frozen=True)
    gpu: str
    hours: float | None = None
    total: float | None = None
    lines: tuple[str, ...] = ()
    basis: str = ""


class Report(BaseModel):
    """What `bruno fit` says."""

    model_config = ConfigDict(frozen=True)
    known: Known
    work: Workload
    fits: tuple[Fit, ...] = ()
    disk: tuple[str, ...] = ()
    disk_gb: float | None = None
    capture_gb: float | None = None
    """Captured residuals, in the machine's own memory."""
    trials: int
    seconds_per_trial: float | None = None
    durations: tuple[Duration, ...] = ()
    prototypes: tuple[str, ...] = ()


def known_of(stored: StoredModel, weights_gb: float | None = None) -> Known:
    """Count what was read. Where the headers are missing, the settings' figure stands in, by name.

    Args:
        weights_gb: what the settings say of the weights' size; None when they say nothing.
    """
    problems = []
    weights = weights_of(stored)
    if weights is None:
        weights = told(weights_gb) if weights_gb else None
        problems.append(f"{stored.problem}; {weights.source if weights else 'its size is unknown'}")
    shape = None
    if stored.config is None and weights is not None and weights.stored:
        problems.append("its config.json is not known, so neither is what it keeps in memory")
    if stored.config is not None:
        try:
            shape = shape_of(stored.config)
        except BrunoError as error:
            problems.append(str(error))
    return Known(model=stored.name, weights=weights, shape=shape, problem="; ".join(problems))


def report(
    known: Known,
    settings: EngineSettings,
    *,
    gpus: Mapping[str, float],
    count: int = 1,
    trials: int,
    size_class: str = "",
    hours: float = 0,
    per_hour: float | None = None,
    rules: DiskRules | None = None,
) -> Report:
    """The whole report.

    Args:
        gpus: settings' name -> GB of memory of one. count: GPUs of a machine.
        trials: of the search. size_class, hours: what the alias says. per_hour: $/h, None when no price was given.
    """
    work = workload_of(settings)
    weights = known.weights
    short = "see above" if known.problem else ""
    fits = tuple(
        fit(weights, known.shape, work, gpu=gpu, memory_gb=memory, count=count, precision=precision, why=short)
        for gpu, memory in sorted(gpus.items(), key=lambda item: (item[1], item[0]))
        for precision in PRECISIONS
    )
    need = disk_needed(weights.bytes, size_class, rules=rules) if weights and weights.bytes else None
    gigabytes = weights.bytes / 1e9 if weights else None
    timed = constants().timed(size_class, gigabytes) if gigabytes else None
    return Report(
        known=known,
        work=work,
        fits=fits,
        disk=need.arithmetic if need else (),
        disk_gb=need.gb if need else None,
        capture_gb=capture_gb(known.shape, work) if known.shape else None,
        trials=trials,
        seconds_per_trial=timed.seconds if timed and not hours else None,
        durations=tuple(
            _duration(known.model, gpu, gigabytes, size_class, trials, hours, per_hour) for gpu in gpus if gigabytes
        ),
        prototypes=tuple(each.source for each in constants().prototypes(timed.size_class)) if timed else (),
    )


def _duration(
    model: str, gpu: str, gigabytes: float, size_class: str, trials: int, hours: float, per_hour: float | None
) -> Duration:
    found = estimate(
        model=model,
        size_class=size_class,
        weights_gb=round(gigabytes, 1),
        trials=trials,
        dph_total=per_hour,
        download_mbps=constants().hub_mbps.value,
        hours=hours,
        gpu=gpu,
    )
    return Duration(gpu=gpu, hours=found.hours, total=found.total, lines=found.arithmetic, basis=found.basis)


def lines(said: Report) -> Iterator[str]:
    """The report in words, most important last in each part; a name, a colon, text."""
    known, work = said.known, said.work
    yield known.model
    yield from (f"weights: {line}" for line in _weights(known.weights))
    if known.shape:
        yield from (f"shape: {line}" for line in _shape(known.shape))
    if known.problem:
        yield f"unknown: {known.problem}"
    yield (
        f"work: {work.trial_batch} trials x {work.prompts} prompts, {work.prompt_tokens} + {work.new_tokens} tokens, "
        f"at most {work.rows(work.trial_batch, constants().wave_passes.value)} rows together"
    )
    for _, group in groupby(said.fits, key=lambda each: each.machine):
        yield from (f"memory: {each.line}" for each in group)
    if said.capture_gb is not None:
        yield f"host: {said.capture_gb:.2f} GB of the machine's own memory for {work.captured_prompts} captured prompts"
    yield from (f"disk: {line}" for line in said.disk or ("unknown",))
    yield from (f"time: {line}" for line in _times(said))


def _weights(weights: Weights | None) -> Iterator[str]:
    if weights is None:
        yield "unknown"
        return
    count = "parameters unknown" if weights.parameters is None else f"{weights.parameters / 1e9:.2f} billion parameters"
    by_type = ", ".join(f"{each.dtype} {each.bytes / 1e9:.2f} GB" for each in weights.stored)
    yield f"{count}, {weights.bytes / 1e9:.2f} GB{f': {by_type}' if by_type else ''} ({weights.source})"
    if weights.experts and weights.parameters:
        share = weights.experts / weights.parameters
        yield f"{share:.0%} are experts, all in memory; loaded as fused parameters, which 8-bit and NF4 leave as they are"
    if weights.tower_bytes:
        yield f"{weights.tower_bytes / 1e9:.2f} GB of it are towers for images or sound"
    if weights.natural == "fp32":
        yield "stored in fp32, and loaded so unless loading.dtype names bfloat16: then twice the weights given below"
    if weights.refused:
        yield f"bruno cannot edit it: {weights.refused}"


def _shape(shape: Shape) -> Iterator[str]:
    listed = "" if shape.listed else ", not in the engine's list of families: it may be refused once loaded"
    yield (
        f"{shape.family}, {shape.layers} blocks x {shape.hidden}, {shape.token * 2 / 1000:g} kB a token in the cache"
        f"{f' and {shape.row * 4 / 1e6:.1f} MB a row' if shape.row else ''}{listed}"
    )
    yield from shape.notes


def _times(said: Report) -> Iterator[str]:
    if not said.durations:
        yield "unknown"
    for basis, group in groupby(said.durations, key=lambda each: (each.hours, each.total, each.lines, each.basis)):
        names = ", ".join(each.gpu.upper() for each in group)
        hours, total, arithmetic, why = basis
        if hours is None:
            yield f"{names}: {why}"
            continue
        cost = "cost unknown without a price (--per-hour, or bruno plan)" if total is None else f"${total:.2f}"
        yield f"{names}: about {hours:.1f} h, {cost}: {'; '.join(arithmetic)}"
        yield why
    yield from (f"not this engine, and not counted with: {each}" for each in said.prototypes)


def words_of(found: Fit) -> str:
    """A machine and precision in two words, for a list of what would fit."""
    return f"{found.machine} in {WORDS[found.precision]} ({found.needed_gb:.0f} GB)"
