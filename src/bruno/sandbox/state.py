"""What the sandbox remembers: account, instances, keys, charges, faults and clock, in one file.

`state.json` holds the API key and the admin token, so it is written with mode 0600, and always by renaming a finished
file over the old one: a killed sandbox leaves either the old state or the new one. Touches only that file.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bruno.errors import BrunoError
from bruno.sandbox.clock import Clock
from bruno.sandbox.faults import Fault
from bruno.sandbox.offers import Offer

FIRST_INSTANCE_ID = 34_100_201
Power = Literal["running", "stopped"]


class StateError(BrunoError):
    """The sandbox's state file cannot be read or does not fit this version."""


class Stage(StrEnum):
    """Where an instance is in its life. `machine.py` says what each one looks like from outside."""

    PROVISIONING = "provisioning"
    CREATED = "created"
    LOADING = "loading"
    BOOTING = "booting"
    RUNNING = "running"
    STOPPING = "stopping"
    HALTED = "halted"
    EXITED = "exited"
    REBOOTING = "rebooting"
    BROKEN = "broken"
    DIED = "died"
    LOST = "lost"


class Pace(BaseModel):
    """How long each stage takes, in sandbox seconds. The defaults bring SSH up 4.5 s after creation."""

    model_config = ConfigDict(extra="forbid")

    provisioning: float = 0.5
    created: float = 0.5
    loading: float = 2.5
    booting: float = 1.0
    stopping: float = 1.0
    halted: float = 0.5
    rebooting: float = 1.5


class SshKey(BaseModel):
    """A public key of the account. `public_key` is one OpenSSH line."""

    id: int
    public_key: str
    created_at: float


class AttachedKey(BaseModel):
    """A key on one instance; it opens the door from `effective_at` on (keys propagate with a lag)."""

    id: int
    public_key: str
    effective_at: float


class Instance(BaseModel):
    """One rented machine. Times in sandbox seconds since the epoch, disk in GB.

    `intended`, `cur` and `next_state` are the provider's fields of the like names. `generation` counts container starts.
    `pace` overrides single stages for this instance. A `foreign` one was put there from outside, not by a create call.
    """

    id: int
    offer: Offer
    stage: Stage = Stage.PROVISIONING
    since: float
    actual: str | None = None
    intended: Power = "running"
    cur: Power = "running"
    next_state: Power = "running"
    status_msg: str | None = None
    label: str | None = None
    image: str = "pytorch/pytorch"
    disk: float = 10.0
    runtype: str = "ssh_proxy"
    onstart: str | None = None
    extra_env: list[tuple[str, str]] = Field(default_factory=list)
    bid: float | None = None
    created_at: float
    end_date: float
    generation: int = 0
    pace: dict[Stage, float] = Field(default_factory=dict)
    keys: list[AttachedKey] = Field(default_factory=list)
    proxy_port: int | None = None
    direct_port: int | None = None
    foreign: bool = False
    file_size_limit: int | None = None
    events: list[tuple[float, str]] = Field(default_factory=list)

    @property
    def gpu_hour(self) -> float:
        """Price of the GPUs in $/h: the bid of an interruptible instance, else the offer's price."""
        return self.bid if self.bid is not None else self.offer.dph_base

    @property
    def disk_hour(self) -> float:
        """Price of the disk in $/h."""
        return self.offer.disk_per_hour(self.disk)

    @property
    def direct(self) -> bool:
        """Whether it can be reached without the proxy: it asked for it and the machine has open ports."""
        return "_direc" in self.runtype and self.offer.direct_port_count > 0


class Charge(BaseModel):
    """What one instance cost on one UTC day. Seconds billed and dollars, GPU and disk apart."""

    instance: int
    day: float
    start: float
    end: float
    label: str | None = None
    gpu_name: str
    gpu_seconds: float = 0.0
    gpu_amount: float = 0.0
    disk_seconds: float = 0.0
    disk_amount: float = 0.0


class State(BaseModel):
    """Everything that survives the sandbox process."""

    version: Literal[1] = 1
    api_key: str = Field(default_factory=lambda: secrets.token_hex(32))
    admin_token: str = Field(default_factory=lambda: secrets.token_hex(32))
    http_port: int = 0
    clock: Clock = Field(default_factory=Clock)
    pace: Pace = Field(default_factory=Pace)
    credit: float = 100.0
    billed_until: float = 0.0
    next_instance_id: int = FIRST_INSTANCE_ID
    next_key_id: int = 90_001
    keys: list[SshKey] = Field(default_factory=list)
    instances: dict[int, Instance] = Field(default_factory=dict)
    charges: list[Charge] = Field(default_factory=list)
    faults: list[Fault] = Field(default_factory=list)


def load(path: Path) -> State | None:
    """Read the state file; None if there is none yet.

    Raises:
        StateError: the file is there and cannot be understood. It is left as it is: instances may still run.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StateError(
            f"Sandbox state {path} cannot be read: {where}: {first['msg']}",
            fix="Move the file away to start with an empty sandbox",
        ) from error


def save(state: State, path: Path) -> None:
    """Write the state so that a reader, or a sandbox started after a crash, sees all of it or the one before."""
    write_private(path, state.model_dump_json(indent=1))


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, readable by its owner alone."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
