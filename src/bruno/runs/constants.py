"""The figures that estimates are made of, each with its source: `durations.toml`, typed. Reads that one file."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_FILE = Path(__file__).with_name("durations.toml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Strict):
    """A number and where it comes from: a file of the engine, a measurement, or "assumption: ..."."""

    value: float = Field(gt=0)
    source: str = Field(min_length=10)


class Timing(_Strict):
    """How long a trial took, on which GPUs (settings' names) and with what. GPUs that are at least as fast are listed too."""

    size_class: str
    weights_gb: float = Field(gt=0)
    """Largest weights that it stands for, 10^9 bytes."""
    seconds: float = Field(gt=0)
    tool: Literal["this engine", "another tool", "prototype"]
    gpus: tuple[str, ...]
    source: str


class Constants(_Strict):
    """All of `durations.toml`. What a figure is for stands beside it there."""

    setup_minutes: Figure
    hub_mbps: Figure
    home_mbps: Figure
    reserve_gb: Figure
    trial_batch: Figure
    prompt_rows: Figure
    wave_passes: Figure
    prompt_copies: Figure
    kept_states: Figure
    kept_share: Figure
    prompts: Figure
    good_prompts: Figure
    captured_prompts: Figure
    prompt_tokens: Figure
    block_inputs: Figure
    residual_copies: Figure
    writer_copies: Figure
    int8_bytes: Figure
    nf4_bytes: Figure
    timing: tuple[Timing, ...]

    def timed(self, size_class: str, weights_gb: float) -> Timing | None:
        """The timing that an estimate may use: of this engine where there is one, never of a prototype.

        Args:
            size_class: such as "32B"; "" takes the smallest class whose weights are at least as large.
        """
        usable = [each for each in self.timing if each.tool != "prototype"]
        fitting = sorted((each.weights_gb, each.size_class) for each in usable if each.weights_gb >= weights_gb)
        wanted = size_class or (fitting[0][1] if fitting else "")
        named = [each for each in usable if each.size_class == wanted]
        return min(named, key=lambda each: (each.tool != "this engine", -each.seconds), default=None)

    def prototypes(self, size_class: str) -> tuple[Timing, ...]:
        """What throw-away prototypes took: shown, never counted with."""
        return tuple(each for each in self.timing if each.tool == "prototype" and each.size_class == size_class)


@cache
def constants() -> Constants:
    """The shipped figures."""
    return Constants.model_validate(tomllib.loads(_FILE.read_text(encoding="utf-8")))
