"""What is to be removed, as data: a behaviour is a TOML file that names prompts, markers and sensible defaults.

Reads: the shipped files in `behaviours/`, a TOML file of the user's, and the prompt sources they name (through
`prompts.py`). Writes nothing. Imports no torch.

A behaviour has two sides. *Bad* prompts show the behaviour, *good* ones do not, and each side has three sets: `train`
(the directions are taken from them), `search` (every trial is scored on them) and `held_out` (seen by neither; for the
report).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bruno.engine.data.source import Source
from bruno.engine.scoring.detectors import Detector, Length, LengthDetector, PhraseDetector, Phrases
from bruno.engine.scoring.refusals import Markers, RefusalDetector
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Side(_Table):
    """The three prompt sets of one side."""

    train: Source
    search: Source
    held_out: Source


class Evaluation(_Table):
    """A prompt set that only the held-out report reads."""

    prompts: Source
    about: str = Field(min_length=1)
    """What its count tells, and whether it should fall or stay."""


class Behaviour(_Table):
    """One behaviour, as its TOML file says it."""

    name: str = Field(min_length=1)
    about: str
    """Completes "removing ...": what the model does now."""
    less: str
    """What the model does when there is less of it."""
    bad: Side
    good: Side
    scorer: Literal["refusals", "length", "phrases"] = "refusals"
    """How an answer that shows the behaviour is recognised."""
    markers: Markers = Markers()
    """For `refusals`: markers of this behaviour beside the shipped ones."""
    length: Length | None = None
    """For `length`: the limit above which an answer shows the behaviour."""
    phrases: Phrases | None = None
    """For `phrases`: what is looked for."""
    hypothesis: str = ""
    """A sentence about an answer that shows the behaviour, for the zero-shot second opinion ("" = none can be given)."""
    question: str = ""
    """A yes-or-no question that is yes for such an answer, for the judge ("" = none can be given)."""
    evaluation: dict[str, Evaluation] = {}
    """Further prompt sets that the held-out report counts before and after, by name."""
    defaults: dict[str, Any] = {}
    """Engine settings that suit this behaviour, by group; what the person set explicitly wins."""

    @model_validator(mode="after")
    def _says_what_its_scorer_needs(self) -> Behaviour:
        given = {
            "refusals": ("markers", self.markers != Markers()),
            "length": ("length", self.length is not None),
            "phrases": ("phrases", self.phrases is not None),
        }
        for scorer, (table, present) in given.items():
            if present and scorer != self.scorer:
                raise ValueError(f"[{table}] is read by scorer = {scorer!r} only, and the scorer is {self.scorer!r}")
        if self.scorer != "refusals" and not given[self.scorer][1]:
            raise ValueError(f"scorer = {self.scorer!r} needs a table [{given[self.scorer][0]}]")
        return self

    @property
    def recognition(self) -> str:
        """Everything that decides whether an answer shows the behaviour, for a study's fingerprint."""
        parts = self.model_dump(mode="json", include={"scorer", "markers", "length", "phrases"})
        return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True)
class Default:
    """A setting taken from the behaviour's file because the person left it open."""

    setting: str
    value: object


def shipped() -> list[str]:
    """The names of the behaviours that come with bruno."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def load_behaviour(settings: EngineSettings) -> Behaviour:
    """The behaviour `settings.behaviour` names: a shipped one or a TOML file.

    "" means `over-refusal` for the demo model and `refusal` for every other.

    Raises:
        InputError: no such behaviour or file, or the file does not say what a behaviour must (the message has the
            place).
    """
    name = settings.behaviour or ("over-refusal" if settings.model == "demo" else "refusal")
    if name in shipped():
        return _parse(name, (_folder() / f"{name}.toml").read_bytes())
    path = Path(name).expanduser()
    if path.suffix == ".toml":
        try:
            return _parse(name, path.read_bytes())
        except OSError as error:
            raise InputError(
                f"The behaviour file {name} cannot be read ({error.strerror})", fix="Check behaviour"
            ) from error
    near = difflib.get_close_matches(name, shipped(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(shipped())}; or give a .toml file."
    raise InputError(f"There is no behaviour called {name!r}", fix=hint)


def with_defaults(settings: EngineSettings, behaviour: Behaviour) -> tuple[EngineSettings, list[Default]]:
    """Fill what the person left open with the behaviour's defaults.

    Returns:
        The settings to run with, and each default that was taken, in the order of the file.

    Raises:
        InputError: the behaviour's defaults name a setting that does not exist or hold a wrong value.
    """
    given = settings.model_dump(exclude_unset=True)
    taken: list[Default] = []
    merged = _merge(behaviour.defaults, given, "", taken)
    try:
        return type(settings).model_validate(merged), taken
    except ValidationError as error:
        raise InputError(f"The defaults of behaviour {behaviour.name} cannot be used: {_first(error)}") from error


def detector(behaviour: Behaviour, settings: EngineSettings) -> Detector:
    """What tells the answers that show this behaviour from the others.

    Raises:
        InputError: a marker of the behaviour is not a regular expression, or answers are read no further than the
            length that would show it.
    """
    if behaviour.phrases is not None:
        return PhraseDetector(behaviour.phrases)
    if behaviour.length is not None:
        read, limit = settings.scoring.max_new_tokens, behaviour.length.words
        if read <= limit:
            raise InputError(
                f"{behaviour.name} is shown by more than {limit} words, and answers are read to {read} tokens",
                fix=f"Set scoring.max_new_tokens to {2 * limit} or more",
            )
        return LengthDetector(behaviour.length)
    try:
        return RefusalDetector(settings.scoring.refusal_detection_mode, behaviour.markers)
    except re.error as error:
        raise InputError(f"A marker of behaviour {behaviour.name} is not a regular expression: {error}") from error


def _folder() -> Any:
    return files("bruno.engine") / "behaviours"


def _parse(name: str, content: bytes) -> Behaviour:
    try:
        return Behaviour.model_validate(tomllib.loads(content.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The behaviour file {name} is not TOML: {error}") from error
    except ValidationError as error:
        raise InputError(f"The behaviour file {name} cannot be used: {_first(error)}") from error


def _merge(defaults: dict[str, Any], given: dict[str, Any], prefix: str, taken: list[Default]) -> dict[str, Any]:
    """`given` over `defaults`, table by table; notes in `taken` each default that nothing replaced."""
    merged = dict(given)
    for key, value in defaults.items():
        if isinstance(value, dict):
            merged[key] = _merge(value, given.get(key, {}), f"{prefix}{key}.", taken)
        elif key not in given:
            merged[key] = value
            taken.append(Default(prefix + key, value))
    return merged


def _first(error: ValidationError) -> str:
    """The first problem of a validation error in one phrase: where, and what is wrong."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
