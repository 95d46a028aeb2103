"""What the engine can be told: one pydantic group per stage.

Each field's description is its help text and its comment in config.toml.

These models are read by the console too (it writes the `config.toml` that travels to the rented machine), so nothing here
imports torch. Fields are added with the method that reads them: a setting that changes nothing is a defect.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Group(BaseModel):
    """A table of config.toml: unknown keys are errors, docstring and descriptions are documentation."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Loading(Group):
    """How the model is read into memory."""

    dtype: list[Literal["auto", "bfloat16", "float16", "float32"]] = ["auto", "bfloat16", "float16", "float32"]
    """Data types to try, in order, until one loads and gives finite logits ("auto": the checkpoint's own)."""
    device: str = "auto"
    """Where the model runs: auto (every GPU there is, else the CPU), cpu, cuda, cuda:1."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Search on a bitsandbytes-quantised model; export still edits the original shards."""
    batch_size: int = Field(default=0, ge=0)
    """Prompts per forward pass; 0 lets the engine choose. Out of memory halves it and says so."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for torch; 0 keeps torch's own choice."""


class Data(Group):
    """Prompts. Empty values come from the behaviour's own file."""

    bad: str = ""
    """Prompts that show the behaviour: a hub id, a folder, or a .txt, .jsonl, .csv or .parquet file ("" = the behaviour's)."""
    good: str = ""
    """Prompts that do not show it."""
    bad_count: int = Field(default=0, ge=0)
    """How many bad prompts the directions are taken from (0 = all that the behaviour names)."""
    good_count: int = Field(default=0, ge=0)
    """How many good prompts the directions are taken from (0 = all that the behaviour names)."""
    system_prompt: str = ""
    """System prompt for every conversation ("" = none is added; the chat template's default applies)."""
    max_prompt_tokens: int = Field(default=1024, ge=16)
    """Longer prompts lose text from the middle of the user's turn, never the assistant header."""


class Directions(Group):
    """How the direction that carries the behaviour is found."""

    winsorize_quantile: float = Field(default=1.0, gt=0.5, le=1.0)
    """Clamp each residual vector to this quantile of its absolute values before averaging (1 = off)."""
    project_good_mean: bool = True
    """Remove from each direction its component along the good prompts' mean of the same layer (projected abliteration)."""


class Edit(Group):
    """What the weight edit looks like."""

    norm_mode: Literal["column", "none", "row", "frobenius"] = "column"
    """Which norms of an edited weight are kept. Only column norms commute exactly with removing a direction."""


class Search(Group):
    """The search for the smallest edit (Optuna: refusal rate and KL divergence, both minimised)."""

    trials: int = Field(default=200, ge=1)
    """How many trials the study holds in all, those of earlier sessions included."""
    trial_batch: int = Field(default=0, ge=0)
    """Trials evaluated together as rows of one batch; 0 lets the engine choose."""
    startup_trials: int = Field(default=0, ge=0)
    """Random trials before the sampler begins to learn; 0 means a fifth of `trials`, at most 60."""
    storage: str = ""
    """Optuna storage URL ("" = an SQLite file in the run's folder)."""
    study: str = ""
    """Study name ("" = the model's name and the behaviour's). One made from other prompts or settings is refused."""
    auto_select: bool = True
    """After the search choose the trial with the fewest refusals whose KL is below `kl_ceiling`.

    Off: show a menu when there is a terminal."""
    kl_ceiling: float = Field(default=0.2, gt=0)
    """First-token KL divergence (nats) above which `auto_select` takes no trial, unless every trial is above it (it says so)."""
    warm_start: bool = True
    """Enqueue the family's known good settings before random ones."""


class Scoring(Group):
    """How trials are scored."""

    bad_count: int = Field(default=0, ge=0)
    """How many behaviour prompts each trial answers (0 = all that the behaviour names)."""
    good_count: int = Field(default=0, ge=0)
    """How many ordinary prompts the KL divergence is measured on (0 = all that the behaviour names)."""
    max_new_tokens: int = Field(default=100, ge=1)
    """Answer length that is read for refusals. Thirty tokens can under-count refusals sevenfold on large models."""
    refusal_detection_mode: Literal["strict", "moderate", "lenient"] = "moderate"
    """strict: core markers only; moderate: and soft ones; lenient: and evasive patterns."""
    kl_divergence_tokens: int = Field(default=1, ge=1)
    """Answer positions of the base model's greedy answer over which KL is also averaged (1 = the first token alone)."""
    held_out: bool = True
    """After the choice, report on prompts that the search never saw."""


class Export(Group):
    """How the chosen edit is written."""

    save: bool = True
    """Write the reshaped model (off: search and report only)."""
    name: str = ""
    """Folder name of the saved model ("" = the model's name with -bruno)."""
    max_free_check: bool = True
    """Refuse to start writing when the disk lacks room for the model."""


class EngineSettings(Group):
    """Everything the engine reads. The console's settings extend these with its own tables."""

    model: str = ""
    """The model to reshape: a Hugging Face id, a local folder, or `demo`."""
    revision: str = ""
    """Branch, tag or commit of the model on the hub ("" = its default branch)."""
    trust_remote_code: bool = False
    """Allow the model repository's own Python code to run. Never asked for at run time: say it here or on the command line."""
    behaviour: str = ""
    """The behaviour to remove: a shipped name (`over-refusal`, `refusal`, ...) or a TOML file.

    "" = refusal, and over-refusal for the demo."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn at random."""
    out: str = "models"
    """Folder for run data and saved models."""
    loading: Loading = Loading()
    data: Data = Data()
    directions: Directions = Directions()
    edit: Edit = Edit()
    search: Search = Search()
    scoring: Scoring = Scoring()
    export: Export = Export()
