"""Playbooks: what a run does on a machine, as data. A TOML file in, a validated list of typed steps out.

A playbook names steps that bruno knows and their limits; it cannot name a command, so a playbook from elsewhere does nothing
that the shipped one could not. Nothing here acts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import bruno
from bruno.errors import InputError

_BEFORE = (
    *("rent", "wait_ready", "identify", "check_disk", "install", "reach"),
    *("smoke", "launch", "follow", "verify", "fetch"),
)
"""The only order that makes sense; a playbook may leave out what is not in `_NEEDED`."""
_NEEDED = frozenset({"rent", "wait_ready", "identify", "install", "launch", "follow"})


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = Field(min_length=1, max_length=120)
    """One line, for people."""
    on: Literal["each", "first"] = "each"
    """Of a run over several instances: on each of them, or on the first alone."""


class Rent(_Step):
    """Rent (or start) the instance that the plan names."""

    do: Literal["rent"]


class WaitReady(_Step):
    """Wait until the provider says running and SSH answers."""

    do: Literal["wait_ready"]
    minutes: float | None = Field(default=None, gt=0)
    """None: `fleet.ready_minutes`."""


class Identify(_Step):
    """The label file must say `C.<instance id>`; the host key is pinned."""

    do: Literal["identify"]


class CheckDisk(_Step):
    """Free disk must hold the model twice (download and export) and something to spare."""

    do: Literal["check_disk"]
    spare_gb: float = Field(default=2, ge=0)


class Install(_Step):
    """Make a virtual environment that sees the image's torch, and install the engine's wheel there, detached."""

    do: Literal["install"]
    minutes: float = Field(default=45, gt=0)


class Reach(_Step):
    """Log in to the study's database from the machine, before anything is launched there."""

    do: Literal["reach"]
    minutes: float = Field(default=2, gt=0)


class Smoke(_Step):
    """Run the engine with very few trials and without saving, before a long search."""

    do: Literal["smoke"]
    trials: int = Field(default=2, ge=1)
    only_from_trials: int = Field(default=100, ge=1)
    """Shorter searches go without it."""
    minutes: float = Field(default=90, gt=0)


class Launch(_Step):
    """Launch the engine, once."""

    do: Literal["launch"]


class Follow(_Step):
    """Read the log by offset until the engine's process has ended."""

    do: Literal["follow"]
    warn_below_gb: float = Field(default=5, ge=0)


class Verify(_Step):
    """Every shard that the model's index names is there and not empty."""

    do: Literal["verify"]


class Fetch(_Step):
    """Copy the model home: resumable, hashes compared."""

    do: Literal["fetch"]


Step = Annotated[
    Rent | WaitReady | Identify | CheckDisk | Install | Reach | Smoke | Launch | Follow | Verify | Fetch,
    Field(discriminator="do"),
]


class Playbook(BaseModel):
    """A validated playbook."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    about: str = Field(min_length=1, max_length=300)
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _sensible(self) -> Playbook:
        kinds = [step.do for step in self.steps]
        missing = [kind for kind in _BEFORE if kind in _NEEDED and kind not in kinds]
        if missing:
            raise ValueError(f"the steps lack {', '.join(missing)}")
        if kinds != [kind for kind in _BEFORE if kind in kinds]:
            raise ValueError(f"steps come once each and in this order: {', '.join(_BEFORE)}")
        alone = [step.do for step in self.steps if step.on == "first" and step.do in _NEEDED]
        if alone:
            raise ValueError(f"every instance needs {', '.join(alone)}")
        return self

    def names(self, *, first: bool) -> list[str]:
        """The steps, in order, of the first instance (or the only one) or of another."""
        return [step.do for step in self.steps if first or step.on == "each"]

    def step(self, name: str) -> Step:
        """The step of this kind. Raises InputError when the playbook has none."""
        for step in self.steps:
            if step.do == name:
                return step
        raise InputError(f"playbook {self.name} has no step {name}")


def load_playbook(name: str) -> Playbook:
    """The shipped playbook of this name, or the one in a TOML file.

    Raises:
        InputError: no such playbook (naming the shipped ones), or the file is wrong (naming the line or the field).
    """
    path = Path(name).expanduser() if name.endswith(".toml") else shipped() / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped().glob("*.toml")))
        raise InputError(f"there is no playbook {name}", fix=f"Shipped ones: {known}; or name a .toml file")
    try:
        return Playbook.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def shipped() -> Path:
    """Where the shipped playbooks lie: inside the installed package, or at the root of a checkout."""
    package = Path(bruno.__file__).parent
    return next(
        (folder for folder in (package / "playbooks", package.parents[1] / "playbooks") if folder.is_dir()), package
    )
