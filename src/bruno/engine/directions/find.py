"""The directions that carry a behaviour, per layer: every extraction that is switched on, composed into one set.

    primary   = mean difference | first of contrastive PCA | ensemble of the probe and either of these
    then        the further directions of contrastive PCA, then those of the concept cones, orthonormal in this order
    protected   helpfulness, good mean, sacred directions taken out of all of them
    beside      weights, one calibration factor, the compliance direction

Pure on captures, [n, L + 1, d] fp32 each; all maths in fp64. Nothing here knows of models or prompts. Captures stay where
they are: some layers at a time go to the device that computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bruno.engine.directions.algebra import (
    aligned,
    mean,
    orthonormal,
    separation,
    unit_difference,
    working_device,
)
from bruno.engine.directions.calibration import activation_calibration
from bruno.engine.directions.compliance import compliance_direction
from bruno.engine.directions.cones import Cones, concept_cones
from bruno.engine.directions.contrastive import Spectrum, contrastive_pca, direction_weights
from bruno.engine.directions.probe import Probe, ensemble, supervised_probe
from bruno.engine.directions.protection import Shielded, check_overlap, protect, sacred_directions
from bruno.engine.directions.record import NotApplicable, Record, blocks_where
from bruno.engine.events import Emit, Notice
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings


@dataclass(frozen=True)
class DirectionSet:
    """Directions to remove.

    Attributes:
        vectors: [L + 1, k, d] fp32, orthonormal over k at each layer (zero where a direction is absent), the primary
            one first; index l is the output of block l - 1, index 0 the embedding.
        weights: [k] fp32, relative strength of each direction, the first 1.
        used: the methods that made them, in order.
        skipped: method to the reason it could not apply, and what stands in for it.
        separation: [L + 1] fp32, distance of the class means along the first direction in pooled standard deviations.
        strength: [L + 1] fp32, distance of the class means, in the units of the residual stream.
        calibration: multiplies every strength, 0.5 to 2.
        compliance: [L + 1, d] fp32, unit directions to add (CAA), orthogonal to `vectors`, zero where absent; or None.
        protected: [L + 1, m, d] fp32, orthonormal directions that no edit touches; or None.
    """

    vectors: torch.Tensor
    weights: torch.Tensor
    used: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    separation: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    strength: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    calibration: float = 1.0
    compliance: torch.Tensor | None = None
    protected: torch.Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """Captures that directions are taken from, [n, L + 1, d] fp32 each, all on one device.

    Attributes:
        bad, good: prompts that show the behaviour, and prompts that do not.
        refused: [n_bad] bool, which bad prompts the base model refuses (shows the behaviour on); None: not known.
        helpful: prompts that ask for help. plain: plain text. capability: prompts that test what must stay.
    """

    bad: torch.Tensor
    good: torch.Tensor
    refused: torch.Tensor | None = None
    helpful: torch.Tensor | None = None
    plain: torch.Tensor | None = None
    capability: torch.Tensor | None = None


@torch.inference_mode()
def find_directions(
    samples: Samples, settings: EngineSettings, emit: Emit | None = None, *, device: torch.device | None = None
) -> DirectionSet:
    """Directions as `settings.directions`, `.protection` and `.edit.compliance_addition` say.

    An optional method that cannot apply is left out: `skipped` and a `Fallback` event name it, why, and what stands in
    for it. Winsorising, which concerns single vectors, has happened in `capture`; it is named in `used` here.

    Args:
        device: where to compute, the model's as a rule; beside the captures, of which it holds some layers at a time, it
            needs less than 2 GB there. Without one it is the captures' own. The result is where the captures are.

    Raises:
        InputError: fewer than two prompts in a class, captures that do not differ at any layer or are not finite, or
            an overlap with the sacred directions that is not allowed.
    """
    device = working_device(device) or samples.bad.device
    means = _checked_means(samples, device)
    record = Record(emit)
    if settings.directions.winsorize_quantile < 1:
        record.use("winsorised captures")
    difference = unit_difference(means["bad"], means["good"])
    spectrum = _contrastive(samples, settings, record, device)
    primary = _primary(samples, difference, spectrum, settings, record)
    vectors, weights = primary[:, None], torch.ones(1, dtype=torch.float64)
    if spectrum is not None:
        vectors = orthonormal(torch.cat([vectors, aligned(spectrum.vectors[:, 1:], difference)], dim=1), floor=1e-3)
        weights = direction_weights(spectrum.eigenvalues, settings.directions.direction_weights).cpu()
    cones = _cones(samples, vectors, difference, settings, record)
    if cones is not None:  # at full strength
        vectors = torch.cat([vectors, aligned(cones.vectors, difference)], dim=1)
        weights = torch.cat([weights, torch.ones(cones.vectors.shape[1], dtype=torch.float64)])
    shielded = _protect(samples, means, vectors, settings, record, emit)
    _name_absent(shielded.vectors[:, 0], difference, record)
    vectors, home = shielded.vectors.float(), samples.bad.device
    there = vectors[1:].any(-1).any(0).cpu()
    if not there.all():
        gone = ", ".join(str(j + 1) for j, is_there in enumerate(there.tolist()) if not is_there)
        record.skip("further directions", f"nothing of number {gone} is left at any block", "the others")
    return DirectionSet(
        vectors=vectors[:, there.to(device)].to(home),
        weights=weights[there].float(),
        separation=separation(samples.bad, samples.good, vectors[:, 0]).to(home),
        strength=torch.linalg.vector_norm(means["bad"] - means["good"], dim=-1).float().to(home),
        calibration=_calibrate(samples, shielded.vectors[:, 0], settings, record),
        compliance=_compliance(samples, shielded, settings, record),
        protected=shielded.span.float().to(home) if shielded.span.shape[1] else None,
        used=tuple(record.used),
        skipped=record.skipped,
    )


def _checked_means(samples: Samples, device: torch.device) -> dict[str, torch.Tensor]:
    """The mean of each of the captures by name, [L + 1, d] fp64."""
    means = {}
    for name, sample in vars(samples).items():
        if sample is None or name == "refused":
            continue
        if len(sample) < 2:
            raise InputError(f"A direction needs at least two {name} prompts, there are {len(sample)}")
        means[name] = mean(sample, device=device)
        if not torch.isfinite(means[name]).all():  # of fp32 in fp64: it is as finite as what it is of
            raise InputError(f"The captures of the {name} prompts are not finite", fix="Try --loading.dtype float32")
    if samples.refused is not None and len(samples.refused) != len(samples.bad):
        raise InputError(f"{len(samples.refused)} answers for {len(samples.bad)} bad prompts: they must be the same")
    return means


def _contrastive(samples: Samples, settings: EngineSettings, record: Record, device: torch.device) -> Spectrum | None:
    chosen = settings.directions
    if not chosen.contrastive_pca:
        return None
    spectrum = record.attempt(
        "contrastive PCA",
        lambda: contrastive_pca(samples.bad, samples.good, chosen.n_directions, chosen.pca_alpha, device=device),
        "the mean difference",
    )
    if spectrum is not None:
        count = spectrum.vectors.shape[1]
        plural = "s" if count > 1 else ""
        record.use(f"contrastive PCA ({count} direction{plural}, alpha {chosen.pca_alpha:g})")
        if spectrum.unsettled:
            reason = f"it does not converge at {spectrum.unsettled} of {len(spectrum.vectors)} layers"
            record.skip("fast contrastive PCA", reason, "a full decomposition there, slower and as exact")
    return spectrum


def _primary(
    samples: Samples, difference: torch.Tensor, spectrum: Spectrum | None, settings: EngineSettings, record: Record
) -> torch.Tensor:
    """The first direction, [L + 1, d]: the best that is there at each layer."""
    chosen = settings.directions
    primary, name = difference, "mean difference"
    if spectrum is not None:
        found = spectrum.eigenvalues[:, 0] > 0
        primary = torch.where(found[:, None], aligned(spectrum.vectors[:, :1], difference)[:, 0], difference)
        name = "contrastive PCA"
        if not found[1:].all():
            name = "contrastive PCA and mean difference"
            record.skip(
                "contrastive PCA", f"it finds nothing after {blocks_where(~found)}", "the mean difference there"
            )
    if spectrum is None or name.endswith("mean difference"):
        record.use("mean difference")
    if not chosen.supervised_probe:
        return primary
    if chosen.ensemble_weight_probe + chosen.ensemble_weight_pca <= 0:
        raise InputError(
            "The ensemble's two weights are both 0", fix="Give one of --directions.ensemble_weight_* a value"
        )
    least = chosen.min_probe_accuracy
    probe = record.attempt("supervised probe", lambda: _probe(samples, least, primary.device), f"the {name}")
    if probe is None:
        return primary
    accepted = probe.accuracy.to(primary.device) >= chosen.min_probe_accuracy
    if not accepted[1:].all():
        reason = f"balanced accuracy below {chosen.min_probe_accuracy:g} after {blocks_where(~accepted)}"
        record.skip("supervised probe", reason, f"the {name} there")
    share = f"{chosen.ensemble_weight_probe:g} probe + {chosen.ensemble_weight_pca:g} {name}"
    best = float(probe.accuracy[1:].max())
    where = f"{int(accepted[1:].sum())} of {len(accepted) - 1} blocks, balanced accuracy up to {best:.2f}"
    record.use(f"ensemble of {share} ({where})")
    return ensemble(
        aligned(probe.vectors[:, None].to(primary), primary)[:, 0],
        primary,
        accepted,
        weight_probe=chosen.ensemble_weight_probe,
        weight_other=chosen.ensemble_weight_pca,
    )


def _probe(samples: Samples, least: float, device: torch.device) -> Probe:
    if samples.refused is None:
        raise NotApplicable("it is not known which bad prompts the model refuses")
    probe = supervised_probe(samples.bad, samples.good, samples.refused, device=device)
    best = float(probe.accuracy[1:].max())
    if best < least:
        raise NotApplicable(f"balanced accuracy {best:.2f} at the best block, below {least:g}")
    return probe


def _cones(
    samples: Samples, removed: torch.Tensor, difference: torch.Tensor, settings: EngineSettings, record: Record
) -> Cones | None:
    chosen = settings.directions
    if not chosen.concept_cones:
        return None
    layer = 1 + int(separation(samples.bad, samples.good, difference)[1:].argmax())
    cones = record.attempt(
        "concept cones",
        lambda: concept_cones(
            samples.bad,
            samples.good,
            removed,
            layer=layer,
            most=chosen.n_concept_cones,
            min_size=chosen.min_cone_size,
            min_silhouette=chosen.min_silhouette_score,
        ),
        "the directions above",
    )
    if cones is not None:
        clusters = (
            f"{cones.clusters.count} clusters, silhouette {cones.clusters.silhouette:.2f} after block {layer - 1}"
        )
        kept = cones.vectors.shape[1]
        record.use(f"concept cones ({kept} direction{'s' if kept > 1 else ''} from {clusters})")
    return cones


def _protect(
    samples: Samples,
    means: dict[str, torch.Tensor],
    vectors: torch.Tensor,
    settings: EngineSettings,
    record: Record,
    emit: Emit | None,
) -> Shielded:
    chosen = settings.protection
    helpful = sacred = None
    if chosen.orthogonalize_directions:
        helpful = record.attempt("helpfulness protection", lambda: _helpful(means), "directions that keep it")
    if chosen.sacred_directions:
        sacred = record.attempt(
            "sacred directions",
            lambda: _sacred(samples, chosen.n_sacred_directions, vectors.device),
            "directions that are not protected by them",
        )
    good_mean = means["good"] if settings.directions.project_good_mean else None
    shielded = protect(vectors, helpful=helpful, good_mean=good_mean, sacred=sacred)
    if helpful is not None:
        record.use("helpfulness taken out")
    if good_mean is not None:
        record.use("projected")
    if sacred is not None:
        warning = check_overlap(shielded, threshold=chosen.sacred_overlap_threshold, allow=chosen.allow_sacred_overlap)
        if warning and emit is not None:
            emit(Notice(text=warning, level="warning"))
        worst = float(shielded.overlap[1:].max())
        record.use(f"{sacred.shape[1]} sacred directions taken out (largest overlap {worst:.2f})")
    return shielded


def _helpful(means: dict[str, torch.Tensor]) -> torch.Tensor:
    if "helpful" not in means or "plain" not in means:
        raise NotApplicable("there are no captures of helpful prompts and plain text")
    direction = unit_difference(means["helpful"], means["plain"])
    if not direction[1:].any():
        raise NotApplicable("the helpful prompts and the plain text do not differ at any block")
    return direction


def _sacred(samples: Samples, count: int, device: torch.device) -> torch.Tensor:
    if samples.capability is None or samples.plain is None:
        raise NotApplicable("there are no captures of capability prompts and plain text")
    return sacred_directions(samples.capability, samples.plain, count, device)


def _name_absent(primary: torch.Tensor, difference: torch.Tensor, record: Record) -> None:
    """Say where no primary direction is; an error when that is everywhere."""
    absent = ~primary.any(-1)
    if absent[1:].all():
        if difference[1:].any():
            raise InputError(
                "Nothing of the direction is left at any layer after protection",
                fix="Protect less: see the settings under [protection] and --directions.project_good_mean",
            )
        raise InputError("The bad and the good prompts do not differ at any layer", fix="Choose other prompt sets")
    same = absent & ~difference.any(-1)
    if same[1:].any():
        record.skip(
            "mean difference", f"the prompt sets do not differ after {blocks_where(same)}", "no direction there"
        )
    taken = absent & ~same
    if taken[1:].any():
        record.skip("protection", f"it takes all of the direction after {blocks_where(taken)}", "no direction there")


def _calibrate(samples: Samples, primary: torch.Tensor, settings: EngineSettings, record: Record) -> float:
    chosen = settings.directions
    if not chosen.activation_calibration:
        return 1.0
    factor = record.attempt(
        "activation calibration",
        lambda: activation_calibration(
            samples.bad,
            primary,
            percentile=chosen.activation_calibration_percentile,
            layer_frac=chosen.activation_calibration_layer_frac,
        ),
        "a factor of 1",
    )
    if factor is None:
        return 1.0
    record.use(f"activation calibration (factor {factor:.2f})")
    return factor


def _compliance(samples: Samples, shielded: Shielded, settings: EngineSettings, record: Record) -> torch.Tensor | None:
    if not settings.edit.compliance_addition:
        return None
    limit = settings.edit.caa_max_overlap

    def make() -> torch.Tensor:
        if samples.refused is None:
            raise NotApplicable("it is not known which bad prompts the model refuses")
        found = compliance_direction(
            samples.bad, samples.refused, shielded.vectors, max_overlap=limit, protected=shielded.span
        )
        over = found.overlap > limit
        if over[1:].any():
            reason = f"|cosine| with the removed directions above {limit:g} after {blocks_where(over)}"
            record.skip("compliance addition", reason, "no addition there")
        return found.vectors.float().to(samples.bad.device)

    vectors = record.attempt("compliance addition", make, "removal alone")
    if vectors is not None:
        blocks = int(vectors[1:].any(-1).sum())
        record.use(f"compliance addition at {blocks} of {len(vectors) - 1} blocks")
    return vectors
