"""Does a model fit a GPU? The memory of the engine's real batches, added up from a shape, weights and figures. Pure.

What is counted follows the engine: several trials answer all search prompts as rows of one batch (`engine/model/generate.py`),
beside the base model's kept states (`engine/model/prefill.py`). When memory runs out the engine halves its rows; so does this:
the most trials together that fit are the answer. GB are 10^9 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bruno.runs.constants import Constants, constants
from bruno.runs.shape import Shape
from bruno.runs.weights import Precision, Weights
from bruno.settings.engine import EngineSettings

Verdict = Literal["fits", "no", "unknown"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "nf4")
WORDS: Mapping[Precision, str] = {"bf16": "bf16", "int8": "8-bit", "nf4": "NF4", "fp32": "fp32"}
COUNTS = (1, 2, 4, 8)
"""GPUs on one machine that are offered."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Workload(_Frozen):
    """What a search asks of a model: rows (trials x prompts) and their tokens."""

    trial_batch: int = Field(ge=1)
    prompts: int = Field(ge=1)
    good_prompts: int = Field(ge=1)
    captured_prompts: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    prompt_rows: int = Field(ge=1)
    """Prompts in one pass."""
    directions: int = Field(default=1, ge=1)

    def rows(self, trials: int, passes: float) -> int:
        """Rows answered together: all prompts of all trials, up to `passes` full passes."""
        return min(round(passes * self.prompt_rows), trials * self.prompts)


class Part(_Frozen):
    """One term of the sum, for one GPU."""

    what: str
    gb: float
    how: str = ""


class Fit(_Frozen):
    """Whether a model fits one kind of machine in one precision."""

    gpu: str
    memory_gb: float
    """Of one GPU."""
    count: int
    precision: Precision
    verdict: Verdict
    trial_batch: int | None = None
    """Most trials that fit together; None when none fits or nobody knows."""
    needed_gb: float | None = None
    """On the fullest GPU; None when a term is unknown."""
    parts: tuple[Part, ...] = ()
    why: str = ""
    """What is unknown."""

    @property
    def machine(self) -> str:
        return f"{f'{self.count} x ' if self.count > 1 else ''}{self.gpu.upper()} {self.memory_gb:g} GB"

    @property
    def sum(self) -> str:
        """The arithmetic: 65.5 GB weights + 6.2 cache + ... = 75.6 of 80 GB."""
        if not self.parts:
            return ""
        terms = " + ".join(f"{part.gb:.1f} {part.what}" for part in self.parts)
        total = "and more, unknown," if self.needed_gb is None else f"= {self.needed_gb:.1f}"
        return f"{terms} {total} of {self.memory_gb:g} GB{' on each GPU' if self.count > 1 else ''}"

    @property
    def line(self) -> str:
        """One sentence with the arithmetic in it."""
        words = WORDS[self.precision]
        if self.verdict == "unknown":
            known = f" ({self.sum})" if self.parts else ""
            return f"unknown whether it fits {self.machine} in {words}: {self.why}{known}"
        if self.verdict == "no":
            return f"does not fit {self.machine} in {words}: {self.sum}"
        return f"fits {self.machine} in {words}: {self.sum}, {self.together}"

    @property
    def together(self) -> str:
        return "one trial at a time" if self.trial_batch == 1 else f"{self.trial_batch} trials together"


def workload_of(settings: EngineSettings, figures: Constants | None = None) -> Workload:
    """The rows and tokens that these settings ask for; where they leave it to the engine or to the prompts, the figures."""
    figures = figures or constants()
    scoring, directions = settings.scoring, settings.directions
    return Workload(
        trial_batch=settings.search.trial_batch or round(figures.trial_batch.value),
        prompts=scoring.bad_count or round(figures.prompts.value),
        good_prompts=scoring.good_count or round(figures.good_prompts.value),
        captured_prompts=(settings.data.bad_count + settings.data.good_count)
        if settings.data.bad_count and settings.data.good_count
        else round(figures.captured_prompts.value),
        prompt_tokens=min(round(figures.prompt_tokens.value), settings.data.max_prompt_tokens),
        new_tokens=scoring.max_new_tokens,
        prompt_rows=settings.loading.batch_size or round(figures.prompt_rows.value),
        directions=directions.n_directions if directions.contrastive_pca else 1,
    )


def precision_of(settings: EngineSettings, weights: Weights | None) -> Precision:
    """What the engine would load with these settings."""
    if settings.loading.quantization != "none":
        return settings.loading.quantization
    first = settings.loading.dtype[0] if settings.loading.dtype else "auto"
    if first == "auto":
        return weights.natural if weights else "bf16"
    return "fp32" if first == "float32" else "bf16"


def fit(
    weights: Weights | None,
    shape: Shape | None,
    work: Workload,
    *,
    gpu: str,
    memory_gb: float,
    count: int = 1,
    precision: Precision = "bf16",
    why: str = "",
    figures: Constants | None = None,
) -> Fit:
    """The verdict for one kind of machine.

    Args:
        weights, shape: None where unknown. Weights that alone are too large are a "no" whatever the shape.
        gpu: settings' name. memory_gb: of one GPU. count: GPUs among which the blocks are spread evenly.
        why: what is unknown, for the sentence.
    """
    figures = figures or constants()
    known = {"gpu": gpu, "memory_gb": memory_gb, "count": count, "precision": precision}
    loaded = weights.loaded(precision, figures) if weights else None
    if loaded is None:
        quantised = weights and not weights.stored
        reason = "which of its weights can be quantised is unknown" if quantised else why or "its weights are unknown"
        return Fit(**known, verdict="unknown", why=reason)
    reserve = Part(what="reserve", gb=figures.reserve_gb.value, how=figures.reserve_gb.source)
    if shape is None:
        part = Part(what="weights", gb=loaded / count / 1e9, how=weights.source if weights else "")
        if part.gb + reserve.gb > memory_gb:
            return Fit(**known, verdict="no", needed_gb=part.gb + reserve.gb, parts=(part, reserve))
        return Fit(**known, verdict="unknown", parts=(part, reserve), why=why or "its shape is unknown")
    if count > shape.layers:
        return Fit(**known, verdict="unknown", why=f"{shape.layers} blocks cannot be spread over {count} GPUs")
    trials, parts = work.trial_batch, ()
    while True:
        parts = (*_parts(loaded, shape, work, trials, memory_gb, count, precision, figures), reserve)
        needed = sum(part.gb for part in parts)
        if needed <= memory_gb:
            return Fit(**known, verdict="fits", trial_batch=trials, needed_gb=needed, parts=parts)
        if trials == 1:
            return Fit(**known, verdict="no", needed_gb=needed, parts=parts)
        trials //= 2


def _parts(
    loaded: float,
    shape: Shape,
    work: Workload,
    trials: int,
    memory_gb: float,
    count: int,
    precision: Precision,
    figures: Constants,
) -> tuple[Part, ...]:
    """The terms for the fullest GPU, without the reserve."""
    size = 4 if precision == "fp32" else 2
    share = math.ceil(shape.layers / count) / shape.layers
    rows = work.rows(trials, figures.wave_passes.value)
    width = figures.prompt_copies.value * work.prompt_tokens + work.new_tokens
    cache = rows * (shape.token * size * width + shape.row * 4 * figures.prompt_copies.value)
    kept = _kept(loaded, shape, work, memory_gb * count, size, figures)
    edited = 4 * work.directions * 2 * shape.hidden + shape.heads * shape.head_dim + shape.writer / shape.hidden
    edits = trials * shape.layers * 4 * edited
    writer = shape.writer * 4 * figures.writer_copies.value
    terms = (
        ("weights", loaded * share, f"{shape.layers} blocks on {count} GPU" if count > 1 else "as loaded"),
        (
            "cache",
            cache * share,
            f"{rows} rows x ({figures.prompt_copies.value:g} x {work.prompt_tokens} + {work.new_tokens}) tokens x "
            f"{shape.token * size / 1000:.0f} kB" + (f" + {shape.row * 8 / 1e6:.0f} MB a row" if shape.row else ""),
        ),
        ("kept states", kept * share, "the base model's, where a quarter of what is free holds them"),
        (
            "activations",
            _working(shape, work, trials, rows, size, figures),
            "the larger of a prompt pass and a decoding step",
        ),
        ("edits", edits * share + writer, f"{trials} trials' factors and scales, one weight in fp32"),
    )
    return tuple(Part(what=what, gb=amount / 1e9, how=how) for what, amount, how in terms)


def _kept(loaded: float, shape: Shape, work: Workload, memory_gb: float, size: int, figures: Constants) -> float:
    """States of the base model over both sets of search prompts; a set that is too large for its share is not kept."""
    inputs = min(shape.layers, 2 * figures.kept_states.value) * shape.hidden
    prompt = work.prompt_tokens * (shape.token + inputs) * size + shape.row * 4
    free = (memory_gb - figures.reserve_gb.value) * 1e9 - loaded
    kept = 0.0
    for prompts in (work.prompts, work.good_prompts):
        if prompts * prompt <= figures.kept_share.value * (free - kept):
            kept += prompts * prompt
    return kept


def _working(shape: Shape, work: Workload, trials: int, rows: int, size: int, figures: Constants) -> float:
    """What lives for a moment: a pass over prompts or a decoding step, and the log-probabilities that KL compares."""
    tokens = min(work.prompt_rows, max(work.prompts, work.good_prompts)) * work.prompt_tokens
    by_token = figures.block_inputs.value * shape.width + figures.residual_copies.value * shape.hidden
    # One block's keys and values for every head (grouped ones are repeated, latents opened); logits, and in fp32.
    attention = rows * (work.prompt_tokens + work.new_tokens) * shape.heads * 2 * shape.head_dim * size
    step = attention + rows * shape.vocabulary * (size + 4)
    compared = (trials + 2) * work.good_prompts * shape.vocabulary * 4
    return max(tokens * by_token * size, step) + compared


def capture_gb(shape: Shape, work: Workload) -> float:
    """The captured residuals of all training prompts, fp32, in the machine's own memory."""
    return work.captured_prompts * (shape.layers + 1) * shape.hidden * 4 / 1e9


def alternatives(
    weights: Weights | None,
    shape: Shape | None,
    work: Workload,
    *,
    refused: Fit,
    gpus: Mapping[str, float],
    figures: Constants | None = None,
) -> tuple[Fit, ...]:
    """What would fit instead: another precision on the same machine, more of the same GPUs, another single GPU."""
    tried: list[Iterable[tuple[str, float, int, Precision]]] = [
        [(refused.gpu, refused.memory_gb, refused.count, each) for each in ("bf16", "int8", "nf4")],
        [(refused.gpu, refused.memory_gb, each, refused.precision) for each in COUNTS if each > refused.count],
        [(name, memory, 1, refused.precision) for name, memory in sorted(gpus.items(), key=lambda item: item[1])],
    ]
    found = []
    for kinds in tried:
        fits = (
            fit(weights, shape, work, gpu=gpu, memory_gb=memory, count=count, precision=precision, figures=figures)
            for gpu, memory, count, precision in kinds
            if (gpu, count, precision) != (refused.gpu, refused.count, refused.precision)
        )
        first = next((each for each in fits if each.verdict == "fits"), None)
        if first:
            found.append(first)
    return tuple(found)
