"""What the engine can be told: one pydantic group per stage.

Each field's description is its help text and its comment in config.toml.

These models are read by the console too (it writes the `config.toml` that travels to the rented machine), so nothing here
imports torch. Fields are added with the method that reads them: a setting that changes nothing is a defect.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer


def hide_password(storage: str) -> str:
    """A storage URL with `***` for its password: what may be stored and shown."""
    storage = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", storage)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", storage)


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
    """Prompts that show the behaviour: a hub id, a folder, or a .txt, .jsonl, .csv or .parquet file ("" = the behaviour's).

    With a part of it where needed: `owner/name::config=en,split=train[:400],column=text,stream=true` (docs/behaviours.md)."""
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
    """How the direction that carries the behaviour is found. The methods compose; each says when it cannot apply."""

    winsorize_quantile: float = Field(default=1.0, gt=0.5, le=1.0)
    """Clamp each residual vector to this quantile of its absolute values before averaging (1 = off)."""
    project_good_mean: bool = True
    """Remove from each direction its component along the good prompts' mean of the same layer (projected abliteration)."""
    contrastive_pca: bool = False
    """Take `n_directions` directions by contrastive PCA about the good mean instead of the mean difference alone."""
    n_directions: int = Field(default=3, ge=1, le=16)
    """Directions that contrastive PCA keeps at each layer."""
    pca_alpha: float = Field(default=1.0, ge=0)
    """Weight of the good prompts' spread in contrastive PCA (0 = plain PCA of the bad prompts about the good mean)."""
    direction_weights: Literal["eigenvalues", "softmax"] = "eigenvalues"
    """Relative strength of several directions: their eigenvalues' shares, or the softmax of the standardised eigenvalues."""
    supervised_probe: bool = False
    """Train a probe per layer on prompts that the model refuses against prompts that it answers, and use its normal."""
    min_probe_accuracy: float = Field(default=0.65, gt=0.5, le=1)
    """Balanced accuracy in cross-validation below which a layer's probe is not used."""
    ensemble_weight_probe: float = Field(default=0.7, ge=0)
    """Share of the probe in the ensemble direction."""
    ensemble_weight_pca: float = Field(default=0.3, ge=0)
    """Share of the first contrastive PCA direction (or of the mean difference) in the ensemble direction."""
    concept_cones: bool = False
    """Cluster the bad prompts and remove a direction for each cluster."""
    n_concept_cones: int = Field(default=5, ge=2)
    """Most clusters that are tried."""
    min_cone_size: int = Field(default=10, ge=2)
    """Fewest prompts in a cluster."""
    min_silhouette_score: float = Field(default=0.1, ge=-1, le=1)
    """Silhouette score below which the prompts do not fall into clusters."""
    activation_calibration: bool = False
    """Scale every strength by how strongly the bad prompts activate the direction."""
    activation_calibration_percentile: float = Field(default=0.75, gt=0, lt=1)
    """Percentile of the bad prompts' activations along the direction that is compared with their mean."""
    activation_calibration_layer_frac: float = Field(default=0.6, ge=0, le=1)
    """Where it is measured, as a share of the depth. The factor is kept between 0.5 and 2."""
    refinement_rounds: int = Field(default=0, ge=0, le=10)
    """Rounds of iterative refinement: capture again with the edit active and add the direction that is left."""
    min_direction_magnitude: float = Field(default=0.1, gt=0)
    """Refinement stops when the classes are less than this share of their first distance apart."""
    max_kl_per_round: float = Field(default=0.5, gt=0)
    """Refinement stops when a round's edit costs more than this first-token KL divergence (nats)."""


class Protection(Group):
    """What must stay in the model: components that are removed from every direction, in this order."""

    orthogonalize_directions: bool = False
    """Remove from every direction the helpfulness direction (helpful prompts against plain text)."""
    helpful: str = "mlabonne/harmless_alpaca::split=train[400:800],column=text"
    """Prompts that ask for help, for the helpfulness direction."""
    plain: str = "Salesforce/wikitext::config=wikitext-2-raw-v1,split=train[:2000],column=text"
    """Plain text that asks for nothing, for the helpfulness and the sacred directions."""
    sacred_directions: bool = False
    """Remove from every direction what separates capability prompts from plain text, so that an edit cannot touch it."""
    n_sacred_directions: int = Field(default=5, ge=1)
    """How many such directions are protected at each layer."""
    sacred: str = "cais/mmlu::config=all,split=test[:400],column=question"
    """Capability prompts for the sacred directions."""
    sacred_overlap_threshold: float = Field(default=0.3, gt=0, le=1)
    """Overlap of a direction with the sacred ones above which the run stops."""
    allow_sacred_overlap: bool = False
    """Go on above that threshold, with a warning."""
    plain_count: int = Field(default=200, ge=4)
    """How many plain texts, helpful and capability prompts are used at most, each."""


class Edit(Group):
    """What the weight edit looks like."""

    norm_mode: Literal["column", "none", "row", "frobenius"] = "column"
    """Which norms of an edited weight are kept. Only column norms commute exactly with removing a direction."""
    layer_profile: list[float] = []
    """Factors on every strength, spread evenly from the first block to the last and interpolated ([] = none)."""
    compliance_addition: bool = False
    """Add the direction from refused to answered bad prompts (CAA) on the attention writers."""
    caa_strength: float = Field(default=0.3, gt=0)
    """How much of it is added, relative to the edit's strength in the same block."""
    caa_max_overlap: float = Field(default=0.5, gt=0, le=1)
    """Largest |cosine| between it and the removed direction; above, it is left out with a notice."""
    heads: bool = False
    """Edit only the attention heads that write the direction, instead of whole attention outputs."""
    head_share: float = Field(default=0.25, gt=0, le=1)
    """Share of all heads that are edited, those that write most of the direction first."""
    router: float = Field(default=0.0, ge=0, le=1)
    """Share of the direction that experts' routers are made blind to (0 = routers stay)."""
    expert_share: float = Field(default=1.0, gt=0, le=1)
    """Edit only the experts that serve this share of the bad prompts' tokens, the busiest first (1 = all experts)."""
    min_routing_health: float = Field(default=0.5, ge=0, le=1)
    """Routing entropy on good prompts, as a share of its largest value, below which a trial is rejected."""


class Search(Group):
    """The search for the smallest edit (Optuna: refusal rate and KL divergence, both minimised)."""

    trials: int = Field(default=200, ge=1)
    """How many trials the study holds in all, those of earlier sessions included."""
    trial_batch: int = Field(default=0, ge=0)
    """Trials evaluated together as rows of one batch; 0 lets the engine choose."""
    startup_trials: int = Field(default=0, ge=0)
    """Trials, warm starts among them, before the sampler begins to learn; 0 means a tenth of `trials`, at most 20."""
    storage: str = ""
    """Optuna storage URL ("" = an SQLite file in the run's folder). Workers anywhere can join one on a database server.

    Better in the environment, BRUNO_SEARCH__STORAGE, than on a command line: its password is never written anywhere."""
    study: str = ""
    """Study name ("" = the model's name and the behaviour's). One made from other prompts or settings is refused."""
    auto_select: bool = True
    """After the search choose the trial with the fewest refusals whose KL is below `kl_ceiling`.

    Off: show a menu when there is a terminal."""
    kl_ceiling: float = Field(default=0.2, gt=0)
    """First-token KL divergence (nats) above which `auto_select` takes no trial, unless every trial is above it (it says so)."""
    stop_dominated: bool = True
    """Stop reading a trial's answers once another is certain to be better in refusals and KL at once. It changes no choice."""
    screening: int = Field(default=0, ge=0, le=64)
    """Candidates for each trial, of which forward passes alone choose the one that is read in full (0 = none).

    It pays where answers take much longer than one pass over the prompts."""
    warm_start: bool = True
    """Enqueue the family's known good settings before random ones."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = 1
    """Processes of this machine that search together: a number, or auto (one for each GPU, or for as many as hold the model).

    With one, a run is repeatable to the last digit; with more, which trials come next depends on who is faster."""
    heartbeat: int = Field(default=30, ge=1)
    """Seconds between a worker's signs of life.

    One that is silent for four times as long counts as dead, and its trials are given out again."""

    @field_serializer("storage", when_used="json")
    def _without_password(self, storage: str) -> str:
        return hide_password(storage)


class Scoring(Group):
    """How trials are scored."""

    bad_count: int = Field(default=0, ge=0)
    """How many behaviour prompts each trial answers (0 = all that the behaviour names)."""
    good_count: int = Field(default=0, ge=0)
    """How many ordinary prompts the KL divergence is measured on (0 = all that the behaviour names)."""
    max_new_tokens: int = Field(default=100, ge=1)
    """Answer length that is read for refusals. Thirty tokens can under-count refusals sevenfold on large models."""
    refusal_detection_mode: Literal["strict", "moderate", "lenient"] = "moderate"
    """strict: core markers only; moderate: and soft ones; lenient: and evasive patterns. Behaviours that are recognised by
    length or phrases do not read it."""
    kl_divergence_tokens: int = Field(default=1, ge=1)
    """Answer positions of the base model's greedy answer over which KL is also averaged (1 = the first token alone)."""
    held_out: bool = True
    """After the choice, report on prompts that the search never saw."""
    neural_detection_model: str = ""
    """A zero-shot NLI model (hub id or folder) that counts held-out answers a second time, as its own count ("" = none)."""
    judge: str = ""
    """A chat model (hub id or folder) that is asked yes or no for each held-out answer, reported as its own ("" = none)."""


class Export(Group):
    """How the chosen edit is written."""

    save: bool = True
    """Write the reshaped model (off: search and report only)."""
    name: str = ""
    """Folder name of the saved model ("" = the model's name with -bruno)."""
    max_free_check: bool = True
    """Refuse to start writing when the disk lacks room for the model."""
    adapter: bool = False
    """Also write the edit as a PEFT adapter (LoRA). Exact, and of the edit's own rank, where no norms are kept."""
    adapter_rank: int = Field(default=0, ge=0, le=256)
    """Rank of the closest adapter where norms are kept and none is exact; its error is measured (0 = exact ones only)."""


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
    protection: Protection = Protection()
    edit: Edit = Edit()
    search: Search = Search()
    scoring: Scoring = Scoring()
    export: Export = Export()
