"""Policy as data: budgets, disk floors and ambiguous phrases from the guardrail files. Reads `guardrails/`, writes nothing.

The shipped files are the repository's `guardrails/` (inside a wheel: `bruno/guardrails`). Folders of a user or a project
may add files of the same names that only tighten: lower ceilings, higher floors, more phrases. A file that cannot be read or
understood is named in `Rules.problems` and the strictest defaults take its place: nothing that costs money is allowed.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bruno.errors import BrunoError

_NAMES = ("disk.toml", "budgets.toml", "phrases.toml")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Budgets(_File):
    """Ceilings and warnings, US dollars. Zero ceilings allow nothing that costs."""

    model_config = ConfigDict(strict=True)  # true is no amount of money

    max_dph: float = Field(default=0, ge=0)
    """Most $/h for what one plan rents, all its instances together, disks included."""
    max_run: float = Field(default=0, ge=0)
    """Most $ that one run may be estimated at."""
    max_live: int = Field(default=0, ge=0)
    """Most instances that may be running at once."""
    warn_dph: float = Field(default=0, ge=0)
    warn_run: float = Field(default=0, ge=0)
    warn_live: int = Field(default=0, ge=0)
    """Above these a plan carries a warning."""
    runway_hours: float = Field(default=1, ge=0)
    """Hours that the credit must last at the plan's price."""


class DiskFloor(_File):
    """The least disk for a class of models, GB."""

    name: str
    from_gb: float = Field(ge=0)
    """Weights of this many GB and more fall into the class even when no class is stated."""
    minimum_gb: float = Field(gt=0)
    recommended_gb: float = Field(default=0, ge=0)


class DiskRules(_File):
    """needed = max(copies x bytes + extra_gb, the floor)."""

    copies: float = Field(default=2, ge=2)
    extra_gb: float = Field(default=20, ge=20)
    floors: tuple[DiskFloor, ...] = Field(min_length=1)


class Reading(_File):
    """One thing an ambiguous phrase can mean."""

    text: str = Field(min_length=1)
    consequence: str = Field(min_length=1)
    intent: str = Field(min_length=1)
    """Kind of the intent it leads to (`intents.py`)."""


class PhraseRule(_File):
    """Vague words, when they are used as an order, and their lettered readings."""

    name: str
    words: tuple[str, ...] = Field(min_length=1)
    """Verbs at the head of a clause, or whole fixed phrases; blanks match any blanks."""
    needs: tuple[str, ...] = ()
    """Regular expressions of which one must be found too."""
    unless: tuple[str, ...] = ()
    """Regular expressions that make the phrase clear after all."""
    question: str
    readings: tuple[Reading, ...] = Field(min_length=2, max_length=6)
    match: tuple[str, ...] = Field(min_length=1)
    no_match: tuple[str, ...] = ()


class PhraseFile(_File):
    """guardrails/phrases.toml."""

    unless: tuple[str, ...] = ()
    phrase: tuple[PhraseRule, ...] = ()


@dataclass(frozen=True)
class Rules:
    """All that is in force."""

    budgets: Budgets
    disk: DiskRules
    phrases: PhraseFile
    problems: tuple[str, ...] = ()
    """What is wrong with the files, one line each, for people."""
    broken: bool = False
    """A file could not be used: nothing that costs money may be allowed."""


STRICTEST_DISK = DiskRules(floors=(DiskFloor(name="unknown", from_gb=0, minimum_gb=400),))


class RuleFileError(BrunoError):
    """A guardrail file cannot be used. The message names the file and the place in it."""

    exit_code = 2


def shipped_folder() -> Path:
    """The guardrails that came with bruno: inside the installed package, or at the root of a checkout.

    Raises:
        RuleFileError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "guardrails", package.parents[1] / "guardrails"):
        if folder.is_dir():
            return folder
    raise RuleFileError("the guardrails that ship with bruno are missing", fix="Install bruno again")


def is_shipped(path: Path) -> bool:
    """Whether a file in a folder of the user is one of bruno's own, as in a checkout, where they lie beside config.toml."""
    try:
        home = shipped_folder()
        own = home / path.relative_to(path.parents[1] if path.parent.name == "commands" else path.parent)
        return own.is_file() and own.read_bytes() == path.read_bytes()
    except (RuleFileError, OSError):
        return False


@lru_cache(maxsize=1)
def shipped() -> Rules:
    """The shipped rules alone, read once per process."""
    return load_rules()


def load_rules(folders: Sequence[Path] = ()) -> Rules:
    """The shipped rules, tightened by each folder in turn. A folder or file that is not there is no error.

    Never raises for a wrong file: see `Rules.problems` and `Rules.broken`.
    """
    rules = Rules(Budgets(), STRICTEST_DISK, PhraseFile())
    try:
        rules = _shipped_rules(shipped_folder())
    except RuleFileError as error:
        rules = replace(rules, problems=(str(error),), broken=True)
    for folder in folders:
        for name in _NAMES:
            path = folder / name
            if not path.is_file() or is_shipped(path):
                continue
            try:
                rules, ignored = _tightened(rules, path)
                # Beside a file that is wrong nothing is allowed anyway, so that nothing can be said to loosen it.
                rules = replace(rules, problems=rules.problems + (() if rules.broken else ignored))
            except RuleFileError as error:
                rules = replace(rules, budgets=Budgets(), problems=(*rules.problems, str(error)), broken=True)
    return rules


def _shipped_rules(folder: Path) -> Rules:
    return Rules(
        budgets=validated(folder / "budgets.toml", Budgets, read_toml(folder / "budgets.toml")),
        disk=validated(folder / "disk.toml", DiskRules, _with_names(read_toml(folder / "disk.toml"))),
        phrases=_checked_phrases(folder / "phrases.toml"),
    )


def _tightened(rules: Rules, path: Path) -> tuple[Rules, tuple[str, ...]]:
    data = read_toml(path)
    if path.name == "phrases.toml":
        added = _checked_phrases(path)
        if added.unless:
            raise RuleFileError(f"{path}: `unless` at the top would make phrases clear for every rule", fix="Remove it")
        return replace(
            rules, phrases=PhraseFile(unless=rules.phrases.unless, phrase=rules.phrases.phrase + added.phrase)
        ), ()
    if path.name == "budgets.toml":
        given = validated(path, Budgets, data).model_dump(exclude_unset=True)
        kept, ignored = _tighter(path, rules.budgets.model_dump(), given, higher={"runway_hours"})
        return replace(rules, budgets=Budgets(**kept)), ignored
    given_floors = {floor["name"]: floor for floor in _with_names(data).get("floors", [])}
    sums = {name: value for name, value in data.items() if name != "floors"}
    if unknown := set(sums) - {"copies", "extra_gb"}:
        raise RuleFileError(
            f"{path}: unknown setting {', '.join(sorted(unknown))}", fix="Known: copies, extra_gb, floors"
        )
    kept, ignored = _tighter(
        path, {"copies": rules.disk.copies, "extra_gb": rules.disk.extra_gb}, sums, higher=set(sums)
    )
    floors = []
    for floor in rules.disk.floors:
        higher, too_low = _tighter(
            path, floor.model_dump(), given_floors.pop(floor.name, {}), higher={"minimum_gb", "recommended_gb"}
        )
        floors.append(higher)
        ignored += too_low
    disk = validated(path, DiskRules, {**kept, "floors": floors + list(given_floors.values())})
    return replace(rules, disk=disk), ignored


def _tighter(
    path: Path, now: dict[str, Any], given: dict[str, Any], higher: set[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`now` with the values of `given` that tighten it; the others are named."""
    kept, ignored = dict(now), []
    for name, value in given.items():
        if name == "name":
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise RuleFileError(f"{path}: {name} must be a number, not {value!r}")
        stricter = max if name in higher else min
        kept[name] = stricter(value, now[name])
        if kept[name] != value:
            ignored.append(f"{path}: {name} = {value:g} would loosen the rule ({now[name]:g}) and is ignored")
    return kept, tuple(ignored)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables.

    Raises:
        RuleFileError: it cannot be read or is not TOML; the message names the file and the line.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RuleFileError(f"guardrail file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RuleFileError(f"guardrail file {path} is not valid TOML: {error}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def validated(path: Path, model: type[_Model], data: dict[str, Any] | None = None) -> _Model:
    """The file's tables (or `data`, taken from it) as the model.

    Raises:
        RuleFileError: the file cannot be read, or does not fit; the message names the file and the place in it.
    """
    try:
        return TypeAdapter(model).validate_python(read_toml(path) if data is None else data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RuleFileError(f"guardrail file {path}: {place}: {first['msg']}") from error


def _with_names(data: dict[str, Any]) -> dict[str, Any]:
    floors = data.get("floors", {})
    if not isinstance(floors, dict) or not all(isinstance(floor, dict) for floor in floors.values()):
        raise RuleFileError("disk.toml: floors must be tables such as [floors.32B]")
    return {**data, "floors": [{"name": name, **floor} for name, floor in floors.items()]}


def _checked_phrases(path: Path) -> PhraseFile:
    """Phrases whose own examples hold: every `match` is caught by its rule, no `no_match` is."""
    from bruno.guard.phrases import caught_by

    file = validated(path, PhraseFile, read_toml(path))
    for rule in file.phrase:
        for text, wanted in [(text, True) for text in rule.match] + [(text, False) for text in rule.no_match]:
            try:
                caught = caught_by(rule, text, file.unless)
            except re.error as error:
                raise RuleFileError(
                    f"guardrail file {path}: rule {rule.name!r}: not a regular expression: {error}"
                ) from error
            if caught is not wanted:
                does = "does not catch" if wanted else "catches"
                raise RuleFileError(f"guardrail file {path}: rule {rule.name!r} {does} its example {text!r}")
    return file
