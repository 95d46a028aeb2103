"""What the console can be told: models and GPUs by short names, the provider, money, the assistant.

`Settings` is the whole of config.toml: the engine's groups at the top level, the console's tables beside them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PrivateAttr

from bruno.settings.catalogue import GPUS, MODELS
from bruno.settings.engine import EngineSettings, Group


class ModelAlias(Group):
    """A short name for a model, with what must be known of it before anything is rented."""

    id: str
    """Hugging Face id, or `demo`."""
    weights_gb: float = Field(gt=0)
    """Bytes of its weight files, in GB (10^9), as the hub lists them."""
    size_class: str = ""
    """Disk floor that applies (a name in guardrails/disk.toml, such as 32B); "" lets the bytes decide."""
    gpu: str = ""
    """Usual GPU, a name from [gpus]."""
    trust_remote_code: bool = False
    """The repository ships Python code that the model needs; the plan says so and the run is started with it."""
    gated: bool = False
    """The hub asks for an accepted licence and a token; checked before anything is rented."""
    behaviour: str = ""
    """Behaviour to remove unless the person names one ("" = refusal)."""
    hours: float = Field(default=0, ge=0)
    """Hours a default run takes, when it was measured (0 = estimated from the constants in runs/money)."""
    trials: int = Field(default=0, ge=0)
    """Trials of a default run (0 = search.trials)."""


class GpuAlias(Group):
    """A GPU's short name, the names the provider lists it under, and its memory."""

    names: list[str] = Field(min_length=1)
    memory_gb: float = Field(gt=0)


class Fleet(Group):
    """The provider and the machines."""

    url: str = "https://console.vast.ai"
    """Base address of the provider's API."""
    timeout: float = Field(default=10, gt=0, le=120)
    """Seconds to wait for one API call."""
    poll_seconds: float = Field(default=5, ge=0.2)
    """Seconds between two readings of the instance list or of a run's log."""
    image: str = "pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime"
    """Container image of new instances; it must ship torch."""
    ready_minutes: float = Field(default=20, gt=0)
    """How long a new instance may take to be reachable before the run is given up and says what it costs."""
    min_reliability: float = Field(default=0.95, ge=0, le=1)
    """Offers below this reliability are not shown."""
    min_download_mbps: float = Field(default=200, ge=0)
    """Offers with a slower line are not shown: weights have to reach the machine."""
    playbook: str = "abliterate"
    """Procedure that a run follows: a shipped name or a TOML file."""
    label_prefix: str = Field(default="bruno", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    """Start of every label that bruno gives."""


class Assistant(Group):
    """Claude, for what the grammar cannot read. Without a key nothing else is missing."""

    enabled: bool = True
    """Ask Claude when the grammar has no reading and a key is set."""
    model: str = "claude-haiku-5-5"
    """Model that turns words into intents."""
    url: str = "https://api.anthropic.com"
    """Base address of the Anthropic API, or of a server that speaks it."""
    max_tokens: int = Field(default=1024, ge=64)
    """Most tokens of one reply."""
    max_turns: int = Field(default=4, ge=1, le=20)
    """Most model turns for one request."""
    timeout: float = Field(default=30, gt=0)
    """Seconds to wait for a reply."""


class Guard(Group):
    """Raw shell commands: `bruno exec`, `!` and `!!`."""

    git_remote: str = "origin"
    """The one remote that `git push` may go to; a push to any other is refused ("" = every push is asked about)."""
    command_seconds: float = Field(default=600, gt=0, le=86_400)
    """How long a shell command may run before it is ended."""


class Sandbox(Group):
    """The emulated provider."""

    pace: float = Field(default=1.0, gt=0)
    """Speed of its status machine and of its billing clock: 1 is about five seconds from rent to SSH."""
    idle_minutes: float = Field(default=30, gt=0)
    """It ends by itself after so long without a request and without a running instance."""


class Settings(EngineSettings):
    """All of config.toml."""

    fleet: Fleet = Fleet()
    assistant: Assistant = Assistant()
    guard: Guard = Guard()
    sandbox: Sandbox = Sandbox()
    models: dict[str, ModelAlias] = Field(
        default_factory=lambda: {k: ModelAlias.model_validate(v) for k, v in MODELS.items()}
    )
    """Short names for models: [models.NAME]. A table given here replaces that name's default; others stay."""
    gpus: dict[str, GpuAlias] = Field(default_factory=lambda: {k: GpuAlias.model_validate(v) for k, v in GPUS.items()})
    """Short names for GPUs: [gpus.NAME]."""
    guardrails: str = ""
    """A further folder of guardrail files that tighten; those in guardrails/ beside the config file are read anyway."""
    _config_folder: Path | None = PrivateAttr(default=None)

    @property
    def config_folder(self) -> Path | None:
        """Where the config file in force lies; None when there is none."""
        return self._config_folder
