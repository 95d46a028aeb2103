"""`reproduce.toml`: everything that is needed to make a saved model again, and to tell whether it is the same one.

Written into the saved model and the run's folder; read by `reproduce.py`. The file travels between people, so what is
read back is validated field by field before anything acts on it. Imports no torch.
"""

from __future__ import annotations

import hashlib
import math
import platform
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bruno import __version__
from bruno.engine.folder import write_whole
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings

if TYPE_CHECKING:
    from bruno.engine.run import Run
    from bruno.engine.search.study import FinishedTrial

RECIPE_FILE = "reproduce.toml"
KL_TOLERANCE = 1e-4
"""Relative difference up to which two KL divergences are the same: what other kernels of the same mathematics leave."""

_LARGEST = 2**20
_LIBRARIES = ("torch", "transformers", "optuna")
_HEAD = """\
What made this model. `bruno reproduce FILE` re-applies the recorded trial and compares; with --search it repeats the
whole search. Versions and digests that differ are named.
"""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[\w][\w.-]*\.safetensors$", max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RecordedModel(_Table):
    """The base model: what was asked for, its commit on the hub ("" for a folder), and its digest."""

    name: str = Field(min_length=1)
    commit: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40})?$")] = ""
    digest: str


class RecordedTrial(_Table):
    """The chosen trial: its number (from 1), how it was chosen, its parameters and its scores on the search prompts."""

    number: int = Field(ge=1, strict=True)
    rule: str
    refusals: int = Field(ge=0, strict=True)
    prompts: int = Field(ge=1, strict=True)
    kl: Finite
    kl_tokens: Finite | None = None
    parameters: dict[str, Finite | str]


class Recipe(_Table):
    """The whole file."""

    format: Literal[1] = 1
    made: str
    """When, in UTC."""
    versions: dict[str, str]
    machine: dict[str, str]
    """Device and data type."""
    model: RecordedModel
    identity: dict[str, str]
    """The study's fingerprint but the model: behaviour, prompts and the settings that its numbers depend on."""
    trial: RecordedTrial
    weights: dict[FileName, Digest] = {}
    """SHA-256 of each weight file of the saved model; empty when nothing was saved."""
    settings: EngineSettings


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `decides`: whether a difference means that the result was not reproduced."""

    name: str
    recorded: str
    found: str
    same: bool
    decides: bool

    def text(self) -> str:
        return f"{self.name}: {self.recorded} recorded, {'the same now' if self.same else f'{self.found} now'}"


def recipe_of(run: Run, chosen: FinishedTrial, rule: str, saved: Path | None) -> Recipe:
    """The recipe of a trial of this run, saved to `saved` (None: not saved). Reads every byte of the saved weights."""
    from bruno.engine.model.checkpoint import weight_files
    from bruno.engine.search.fingerprint import model_digest

    return Recipe(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine={"device": str(run.loaded.device), "dtype": str(run.loaded.dtype).removeprefix("torch.")},
        model=RecordedModel(
            name=run.settings.model, commit=commit_of(run.loaded.source), digest=model_digest(run.loaded.source)
        ),
        identity=without_model(run.identity),
        trial=RecordedTrial(
            number=chosen.number, rule=rule, parameters=dict(chosen.parameters), **asdict(chosen.scores)
        ),
        weights=hashes(saved, weight_files(saved)) if saved else {},
        settings=run.settings,
    )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"bruno": __version__, "python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def commit_of(source: Path) -> str:
    """The commit of a snapshot in the hub's cache; "" for any other folder."""
    name = source.name
    in_cache = source.parent.name == "snapshots" and len(name) == 40 and set(name) <= set("0123456789abcdef")
    return name if in_cache else ""


def without_model(identity: dict[str, str]) -> dict[str, str]:
    """A fingerprint without the model, whose place may differ between machines: its digest is compared by itself."""
    return {key: value for key, value in identity.items() if key not in ("model", "engine version")}


def hashes(folder: Path, files: list[str]) -> dict[str, str]:
    """SHA-256 of files, several at a time (hashing leaves Python's lock)."""

    def digest(file: str) -> str:
        with (folder / file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))


def write_recipe(recipe: Recipe, *folders: Path | None) -> None:
    """Write `reproduce.toml` into each folder, whole or not at all."""
    document = tomlkit.document()
    for line in _HEAD.splitlines():
        document.add(tomlkit.comment(line))
    document.update(recipe.model_dump(mode="json", exclude_none=True))
    text = tomlkit.dumps(document)
    for folder in folders:
        if folder is not None:
            write_whole(folder / RECIPE_FILE, lambda target: target.write_text(text, encoding="utf-8"))


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file, or in a folder that holds one.

    Raises:
        InputError: there is none, it is not TOML, or a field is missing, unknown or of the wrong kind (the first is
            named).
    """
    path = path / RECIPE_FILE if path.is_dir() else path
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is too large for a {RECIPE_FILE}")
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", fix=f"Name a {RECIPE_FILE}, or a folder that holds one"
        ) from error
    except ValidationError as error:
        raise InputError(f"{path} cannot be used: {_first(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML ({_line(error)})") from error


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def compare_tables(title: str, recorded: dict[str, str], found: dict[str, str], *, decides: bool) -> list[Check]:
    """A check for each key of either table, in the recorded order."""
    keys = [*recorded, *(key for key in found if key not in recorded)]
    return [
        _equal(f"{title} {key}", recorded.get(key, "nothing"), found.get(key, "nothing"), decides=decides)
        for key in keys
    ]


def compare_scores(recorded: RecordedTrial, found: dict[str, Any]) -> list[Check]:
    """Raw counts must be equal; KL divergences within `KL_TOLERANCE`."""
    counts = _equal(
        "refusals", f"{recorded.refusals}/{recorded.prompts}", f"{found['refusals']}/{found['prompts']}", decides=True
    )
    checks = [counts]
    for name in ("kl", "kl_tokens"):
        before, after = getattr(recorded, name), found.get(name)
        if before is None and after is None:
            continue
        close = (
            before is not None and after is not None and math.isclose(before, after, rel_tol=KL_TOLERANCE, abs_tol=1e-7)
        )
        checks.append(Check(name, str(before), str(after), close, decides=True))
    return checks


def _equal(name: str, recorded: str, found: str, *, decides: bool) -> Check:
    return Check(name, recorded, found, recorded == found, decides)
