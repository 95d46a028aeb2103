"""Typed actions: everything bruno can do to the world, as frozen data. The one shape that every face produces.

An action states its risk, the exact calls it makes, whether it can be undone and how far its effect reaches. It is not a
function: `fleet` and `runs` carry it out, and refuse without a permit that covers exactly this action.
"""

from __future__ import annotations

import shlex
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_COMMAND = 8192
"""Characters of a raw shell line."""


class Risk(IntEnum):
    """How much an action can hurt, lowest first. Anything above READ needs a permit in `fleet`."""

    READ = 0
    CHANGE = 1
    COSTLY = 2
    DESTRUCTIVE = 3
    IRREVERSIBLE = 4


class Target(BaseModel):
    """Exactly which instance: all three must agree with the provider, the pinned host key's record and the label file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    instance_id: int
    label: str
    ssh_port: int | None = None
    """None when the provider shows none (not running): then there is no process to lose, and the fact is shown as unknown."""


class _Action(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    risk: ClassVar[Risk]
    inverse: ClassVar[str] = ""
    """How to undo it, in words; empty when it cannot be undone."""

    def calls(self) -> tuple[str, ...]:
        """The exact calls it makes, for people to read and copy."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line: what will happen, to which thing."""
        raise NotImplementedError

    def preconditions(self) -> tuple[str, ...]:
        """What must hold at the moment of acting, each read again then; one that does not hold, or is unknown, stops it."""
        raise NotImplementedError

    def costs(self) -> str:
        """What it costs, in words with their figures; "nothing" where that is so."""
        raise NotImplementedError

    def blast_radius(self) -> str:
        """How far the effect reaches; empty when it ends with the action itself."""
        return ""

    def verbatim(self) -> str:
        """Text that is shown character by character, since every blank and quote of it counts; empty when there is none."""
        return ""


def _still(target: Target) -> str:
    port = target.ssh_port if target.ssh_port is not None else "none"
    return f"instance {target.instance_id} still has label {target.label} and SSH port {port}"


class CreateInstance(_Action):
    """Rent an offer."""

    kind: Literal["create_instance"] = "create_instance"
    risk: ClassVar[Risk] = Risk.COSTLY
    inverse: ClassVar[str] = "destroy the instance; what was billed until then stays billed"
    offer_id: int
    machine_id: int
    gpu: str
    gpu_count: int = Field(ge=1)
    image: str
    disk_gb: float = Field(gt=0)
    label: str = Field(min_length=1)
    """Unique to the run, so that a lost reply can be reconciled by looking for it."""
    max_dph: float = Field(gt=0)
    """$/h, disk included: the price shown. A dearer offer at the moment of acting is refused."""

    def calls(self) -> tuple[str, ...]:
        return (
            f"vastai create instance {self.offer_id} --image {shlex.quote(self.image)} --disk {self.disk_gb:g} "
            f"--label {shlex.quote(self.label)} --ssh --direct --cancel-unavail",
        )

    def describe(self) -> str:
        count = f"{self.gpu_count} x " if self.gpu_count > 1 else ""
        return (
            f"rent {count}{self.gpu} (offer {self.offer_id}, {self.disk_gb:g} GB disk) at up to ${self.max_dph:.3f}/h"
        )

    def preconditions(self) -> tuple[str, ...]:
        return (
            f"offer {self.offer_id} is still {self.gpu} on machine {self.machine_id}, with room for {self.disk_gb:g} GB",
            f"its price is at most ${self.max_dph:.3f}/h, disk included",
            f"no instance is labelled {self.label} yet; else that one is taken and nothing is rented",
        )

    def costs(self) -> str:
        return f"up to ${self.max_dph:.3f}/h from the moment it is rented"

    def blast_radius(self) -> str:
        return (
            "billing starts at once and goes on until the instance is stopped; its disk is billed until it is destroyed"
        )


class StartInstance(_Action):
    """Start a stopped instance again."""

    kind: Literal["start_instance"] = "start_instance"
    risk: ClassVar[Risk] = Risk.COSTLY
    inverse: ClassVar[str] = "stop the instance"
    target: Target
    max_dph: float = Field(gt=0)

    def calls(self) -> tuple[str, ...]:
        return (f"vastai start instance {self.target.instance_id}",)

    def describe(self) -> str:
        return f"start instance {self.target.instance_id} ({self.target.label}) at ${self.max_dph:.3f}/h"

    def preconditions(self) -> tuple[str, ...]:
        return (
            f"instance {self.target.instance_id} is still labelled {self.target.label}",
            f"its price is at most ${self.max_dph:.3f}/h, and its contract has not ended",
        )

    def costs(self) -> str:
        return f"up to ${self.max_dph:.3f}/h while it runs"

    def blast_radius(self) -> str:
        return "billing starts again and goes on until the instance is stopped"


class StopInstance(_Action):
    """Stop a running instance: kills every process on it, keeps its disk."""

    kind: Literal["stop_instance"] = "stop_instance"
    risk: ClassVar[Risk] = Risk.DESTRUCTIVE
    inverse: ClassVar[str] = "start it again, if the GPU is still free; processes are lost"
    target: Target
    kills: str = ""
    """What dies with it ("the engine at trial 57 of 200; no model saved")."""

    def calls(self) -> tuple[str, ...]:
        return (f"vastai stop instance {self.target.instance_id}",)

    def describe(self) -> str:
        port = self.target.ssh_port if self.target.ssh_port is not None else "unknown"
        return f"stop instance {self.target.instance_id} (label {self.target.label}, SSH port {port})"

    def preconditions(self) -> tuple[str, ...]:
        return (_still(self.target),)

    def costs(self) -> str:
        return "nothing; its disk is billed until it is destroyed"

    def blast_radius(self) -> str:
        return self.kills or "kills every process on the instance"


class DestroyInstance(_Action):
    """Delete an instance and its disk."""

    kind: Literal["destroy_instance"] = "destroy_instance"
    risk: ClassVar[Risk] = Risk.IRREVERSIBLE
    target: Target
    loses: str = ""

    def calls(self) -> tuple[str, ...]:
        return (f"vastai destroy instance {self.target.instance_id} -y",)

    def describe(self) -> str:
        return f"destroy instance {self.target.instance_id} (label {self.target.label}) and everything on its disk"

    def preconditions(self) -> tuple[str, ...]:
        return (_still(self.target),)

    def costs(self) -> str:
        return "nothing, and nothing is billed for it afterwards"

    def blast_radius(self) -> str:
        return self.loses or "every file on the instance is lost"


class RegisterKey(_Action):
    """Give the provider bruno's public SSH key, or attach it to an instance that lacks it."""

    kind: Literal["register_key"] = "register_key"
    risk: ClassVar[Risk] = Risk.CHANGE
    inverse: ClassVar[str] = "vastai delete ssh-key"
    fingerprint: str
    instance_id: int | None = None

    def calls(self) -> tuple[str, ...]:
        if self.instance_id is None:
            return ("vastai create ssh-key <bruno's public key>",)
        return (f"vastai attach ssh {self.instance_id} <bruno's public key>",)

    def describe(self) -> str:
        return f"register bruno's SSH key {self.fingerprint}"

    def preconditions(self) -> tuple[str, ...]:
        return (f"bruno's own key is still {self.fingerprint}",)

    def costs(self) -> str:
        return "nothing"

    def blast_radius(self) -> str:
        where = "every instance rented from now on" if self.instance_id is None else f"instance {self.instance_id}"
        return f"whoever holds bruno's key can log in to {where}"


class RunPlaybook(_Action):
    """Carry out a playbook's steps on the instance, or on each of the instances, that this plan rents."""

    kind: Literal["run_playbook"] = "run_playbook"
    risk: ClassVar[Risk] = Risk.CHANGE
    inverse: ClassVar[str] = "stop the instance"
    playbook: str
    steps: tuple[str, ...]
    """Each step in one line, as shown to the person."""
    engine_argv: tuple[str, ...]
    model: str
    """What is reshaped: a hub id, or `demo`."""
    behaviour: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The engine's settings that somebody said: they travel with the run and are part of what is confirmed."""
    workers: tuple[str, ...] = ()
    """Labels of the instances that get a worker each, when there are several: the first makes study and model."""
    worker_argv: tuple[str, ...] = ()
    """What the others run."""
    database: str = ""
    """Where the workers keep their study, without its password."""

    def calls(self) -> tuple[str, ...]:
        return self.steps

    def describe(self) -> str:
        where = f"each of the {len(self.workers)} instances" if self.workers else "it"
        kept = f", one study in {self.database}" if self.database else ""
        steps = f"{len(self.steps)} steps"
        return f"run playbook {self.playbook} on {where}, {steps}, the engine reshaping {self.model}{kept}"

    def preconditions(self) -> tuple[str, ...]:
        return (
            "the machine is the one this plan rents: its host key and its own label file say so",
            "no other bruno carries the run on, and its engine runs at most once",
        )

    def costs(self) -> str:
        return "nothing by itself; the machine is billed while it runs"

    def blast_radius(self) -> str:
        return "processes and files on that machine; the model is copied home"


class _Command(_Action):
    """A raw shell line, exactly as it is handed to bash, with the verdict it was shown with."""

    command: str = Field(min_length=1, max_length=LONGEST_COMMAND, pattern=r"^[^\x00]+\z")
    """Byte for byte what runs. No NUL: bash would end the command there."""
    level: Literal["allow", "ask", "typed_yes", "refuse"]
    """The guard's verdict. It is taken again when the plan is judged and at the act; a stricter one then stops it."""
    reasons: tuple[str, ...] = ()
    wipes: bool = False
    """It may delete all that is kept on the machine."""
    seconds: float = Field(gt=0)
    """It is ended after so long."""

    @property
    def risk(self) -> Risk:  # type: ignore[override]  # known with the verdict, not with the class
        if self.level == "allow":
            return Risk.READ
        return Risk.IRREVERSIBLE if self.wipes else Risk.CHANGE if self.level == "ask" else Risk.DESTRUCTIVE

    @property
    def inverse(self) -> str:  # type: ignore[override]
        if self.level in ("allow", "ask"):
            return "nothing of bruno's undoes it"
        return ""

    def verbatim(self) -> str:
        return self.command

    def blast_radius(self) -> str:
        return "; ".join(self.reasons[:4])


class RunCommand(_Command):
    """Run a shell line on an instance, as its SSH user."""

    kind: Literal["run_command"] = "run_command"
    target: Target

    def calls(self) -> tuple[str, ...]:
        return (f"ssh instance {self.target.instance_id}: bash -c the line above, for {self.seconds:g} s at most",)

    def describe(self) -> str:
        return f"run a shell line on instance {self.target.instance_id} ({self.target.label})"

    def preconditions(self) -> tuple[str, ...]:
        return (
            _still(self.target),
            "its host key and its own label file say so",
            "the verdict on the line is no stricter",
        )

    def costs(self) -> str:
        return "nothing by itself; the machine is billed while it runs"


class RunLocal(_Command):
    """Run a shell line on the operator's own machine, as the operator."""

    kind: Literal["run_local"] = "run_local"
    folder: str
    """Where it runs; checked again at the act."""

    def calls(self) -> tuple[str, ...]:
        return (f"bash -c the line above, here, for {self.seconds:g} s at most",)

    def describe(self) -> str:
        return f"run a shell line on this machine, in {self.folder}"

    def preconditions(self) -> tuple[str, ...]:
        return (f"{self.folder} is the folder it runs in", "the verdict on the line is no stricter")

    def costs(self) -> str:
        return "nothing"


Action = Annotated[
    CreateInstance | StartInstance | StopInstance | DestroyInstance | RegisterKey | RunPlaybook | RunCommand | RunLocal,
    Field(discriminator="kind"),
]
