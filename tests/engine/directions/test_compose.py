"""Everything at once, and each setting by itself: what is on is used, says so, and changes what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bruno.engine.directions import spectrum
from bruno.engine.directions.algebra import project_out, working_device
from bruno.engine.directions.find import DirectionSet, Samples, find_directions
from bruno.engine.events import Fallback, Notice
from bruno.errors import InputError
from bruno.settings.engine import Directions, Edit, EngineSettings, Protection
from tests.engine.directions.planted import cosine, noise, units

LAYERS, HIDDEN = 3, 40
SHARED, FIRST, SECOND, REFUSAL, ANSWER, HELP, SKILL, LEAN = units(8, HIDDEN)
OFFSET = 6 * noise(LAYERS + 1, HIDDEN, seed=7)


def sample(count: int, seed: int, *shifts: torch.Tensor) -> torch.Tensor:
    captures = OFFSET + 0.5 * noise(count, LAYERS + 1, HIDDEN, seed=seed)
    return (captures + sum(shifts, torch.zeros(HIDDEN))).float()


def world(seed: int = 0) -> Samples:
    """Bad prompts of two kinds (a concept each), 70 of 120 refused; the other classes as their names say."""
    kind, refused = torch.arange(120)[:, None, None] < 70, torch.arange(120) % 12 < 7
    concept = torch.where(kind, 3 * FIRST, 3 * SECOND)
    answer = torch.where(refused[:, None, None], 2 * REFUSAL, 2.5 * ANSWER)
    return Samples(
        bad=sample(120, seed + 1, 4 * SHARED + concept + answer + 0.8 * SKILL + 0.8 * HELP),
        good=sample(150, seed + 2),
        refused=refused,
        helpful=sample(60, seed + 3, 5 * HELP),
        plain=sample(60, seed + 4),
        capability=sample(60, seed + 5, 5 * SKILL, 2 * LEAN),
    )


ALL = {
    "winsorize_quantile": 0.99,
    "contrastive_pca": True,
    "supervised_probe": True,
    "concept_cones": True,
    "activation_calibration": True,
}
GUARDED = {"orthogonalize_directions": True, "sacred_directions": True, "n_sacred_directions": 1}
ADDED = {"compliance_addition": True, "caa_max_overlap": 1.0}


def found(samples: Samples | None = None, emit=None, directions=None, protection=None, edit=None) -> DirectionSet:
    settings = EngineSettings(
        directions=Directions(**(directions or {})),
        protection=Protection(**(protection or {})),
        edit=Edit(**(edit or {})),
    )
    return find_directions(samples or world(), settings, emit)


def test_everything_switched_on_composes() -> None:
    events: list = []
    result = found(None, events.append, ALL, GUARDED, ADDED)
    assert [word.split(" (")[0] for word in result.used] == [
        "winsorised captures",
        "contrastive PCA",
        "ensemble of 0.7 probe + 0.3 contrastive PCA",
        "concept cones",
        "helpfulness taken out",
        "projected",
        "1 sacred directions taken out",
        "activation calibration",
        "compliance addition at 3 of 3 blocks",
    ]
    assert result.skipped == {}
    assert events == []
    k = result.vectors.shape[1]
    assert k == len(result.weights) == 4  # the ensemble, two more of contrastive PCA, and a cone
    assert result.weights[0] == 1
    assert (result.weights[3:] == 1).all()
    gram = result.vectors.double() @ result.vectors.double().mT
    assert (gram - torch.eye(k)).abs().max() < 1e-6
    good_mean = torch.nn.functional.normalize(world().good.double().mean(0), dim=-1)
    skill = torch.nn.functional.normalize(world().capability.mean(0).double() - world().plain.mean(0).double(), dim=-1)
    assert (result.vectors * good_mean[:, None]).sum(-1).abs().max() < 1e-6
    assert (result.vectors @ result.protected.mT).abs().max() < 1e-6
    assert (torch.linalg.vector_norm(result.protected.double() @ skill[..., None], dim=(1, 2)) > 0.98).all()
    assert (result.compliance[:, None] * result.vectors).sum(-1).abs().max() < 1e-6
    assert (result.compliance[:, None] * result.protected).sum(-1).abs().max() < 1e-6
    assert 0.5 <= result.calibration <= 2.0 != result.calibration
    assert (result.separation > 3).all()
    assert result.strength.shape == (LAYERS + 1,)
    kind, refused = torch.arange(120) < 70, world().refused
    for group in (kind & refused, kind & ~refused, ~kind & refused, ~kind & ~refused):
        difference = world().bad[group].double().mean(0) - world().good.double().mean(0)
        left = project_out(difference, result.protected)  # what an edit may take of this group's difference
        share = torch.linalg.vector_norm(project_out(left, result.vectors), dim=-1) / torch.linalg.vector_norm(
            left, dim=-1
        )
        assert (share < 0.15).all()


def test_the_order_of_prompts_changes_nothing() -> None:
    samples = world()
    shuffle = torch.randperm(120, generator=torch.Generator().manual_seed(5))
    shuffled = Samples(
        samples.bad[shuffle],
        samples.good.flip(0),
        samples.refused[shuffle],
        samples.helpful.flip(0),
        samples.plain.flip(0),
        samples.capability.flip(0),
    )
    one, other = (found(s, None, ALL, GUARDED, ADDED) for s in (samples, shuffled))
    assert one.used == other.used
    assert (one.vectors - other.vectors).abs().max() < 1e-4
    assert (one.compliance - other.compliance).abs().max() < 1e-4
    assert one.calibration == pytest.approx(other.calibration, abs=1e-4)


PCA, PROBE, CONES = {"contrastive_pca": True}, {"supervised_probe": True}, {"concept_cones": True}
CALIBRATED = {"activation_calibration": True}
CHANGES = [  # (what is on already, what changes, which attribute shows it)
    ("directions", {}, {"project_good_mean": False}, "vectors"),
    ("directions", {}, {"winsorize_quantile": 0.9}, "used"),
    ("directions", {}, PCA, "vectors"),
    ("directions", PCA, {"n_directions": 2}, "vectors"),
    ("directions", PCA, {"pca_alpha": 0.2}, "vectors"),
    ("directions", PCA, {"direction_weights": "softmax"}, "weights"),
    ("directions", {}, PROBE, "vectors"),
    ("directions", PROBE, {"ensemble_weight_probe": 0.1}, "vectors"),
    ("directions", PROBE, {"ensemble_weight_pca": 0.0}, "vectors"),
    ("directions", PROBE, {"min_probe_accuracy": 1.0}, "vectors"),
    ("directions", {}, CONES, "vectors"),
    ("directions", CONES, {"min_cone_size": 60}, "skipped"),
    ("directions", CONES, {"min_silhouette_score": 0.99}, "skipped"),
    ("directions", CONES, {"n_concept_cones": 2}, "used"),
    ("directions", {}, CALIBRATED, "calibration"),
    ("directions", CALIBRATED, {"activation_calibration_percentile": 0.95}, "calibration"),
    ("directions", CALIBRATED, {"activation_calibration_layer_frac": 0.0}, "calibration"),
    ("protection", {}, {"orthogonalize_directions": True}, "vectors"),
    ("protection", {}, {"sacred_directions": True, "n_sacred_directions": 1}, "vectors"),
    ("protection", {"sacred_directions": True, "n_sacred_directions": 1}, {"n_sacred_directions": 2}, "vectors"),
    ("edit", {}, ADDED, "compliance"),
    ("edit", ADDED, {"caa_max_overlap": 0.01}, "compliance"),
]


@pytest.mark.parametrize(("group", "base", "change", "attribute"), CHANGES, ids=lambda v: str(v)[:40])
def test_every_setting_changes_what_it_says(group, base, change, attribute) -> None:
    changes = {"min_cone_size": 10, **base, **change} if group == "directions" else {**base, **change}
    # three kinds of prompts, so that the number of clusters matters
    samples = world()
    samples.bad[30:50] += (3 * (LEAN - FIRST)).float() + 3 * ANSWER.float()
    one, other = (getattr(found(samples, **{group: given}), attribute) for given in (base, changes))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert one.shape != other.shape or (one - other).abs().max() > 1e-3
    else:
        assert one is not other if one is None or other is None else one != other


def test_the_overlap_threshold_stops_and_its_permission_warns() -> None:
    samples = world()
    leaning = replace(samples, capability=sample(60, 9, 4 * SHARED, 4 * LEAN))
    guarded = {"sacred_directions": True, "n_sacred_directions": 1}
    with pytest.raises(InputError, match=r"overlaps with the sacred ones by 0\.\d\d \(more than 0.3 at blocks 0-2\)"):
        found(leaning, protection=guarded)
    found(leaning, protection={**guarded, "sacred_overlap_threshold": 0.9})
    events: list = []
    allowed = found(leaning, events.append, protection={**guarded, "allow_sacred_overlap": True})
    assert [event.level for event in events if isinstance(event, Notice)] == ["warning"]
    assert (allowed.vectors @ allowed.protected.mT).abs().max() < 1e-6


MISSING = [  # (what the samples lack, what is asked for, method, reason, what the run continues with)
    ({"refused": None}, {"directions": PROBE}, "supervised probe", "not known which", "the mean difference"),
    (
        {"refused": torch.arange(120) < 9},
        {"directions": {**PROBE, **PCA}},
        "supervised probe",
        "9 refused and 261 answered prompts; it needs 10",
        "the contrastive PCA",
    ),
    ({"refused": None}, {"edit": ADDED}, "compliance addition", "not known which", "removal alone"),
    ({"refused": torch.arange(120) < 111}, {"edit": ADDED}, "compliance addition", "111 refused and 9", "removal"),
    (
        {"helpful": None},
        {"protection": {"orthogonalize_directions": True}},
        "helpfulness protection",
        "no captures of helpful",
        "directions that keep it",
    ),
    (
        {"plain": None},
        {"protection": {"sacred_directions": True}},
        "sacred directions",
        "no captures of capability prompts and plain text",
        "directions that are not protected",
    ),
    (
        {},
        {"directions": {**CONES, "min_cone_size": 100}},
        "concept cones",
        "two clusters of 100",
        "the directions above",
    ),
    ({}, {"directions": {**PCA, "pca_alpha": 1e6}}, "contrastive PCA", "at no block", "the mean difference"),
]


@pytest.mark.parametrize(("lacks", "asked", "method", "reason", "instead"), MISSING, ids=[m[2] for m in MISSING])
def test_a_method_that_cannot_apply_is_named_and_the_run_goes_on(lacks, asked, method, reason, instead) -> None:
    events: list = []
    result = found(replace(world(), **lacks), events.append, **asked)
    (fallback,) = [event for event in events if isinstance(event, Fallback)]
    assert (fallback.method, reason in fallback.reason, fallback.instead.startswith(instead)) == (method, True, True)
    assert result.skipped == {method: f"{fallback.reason}; continuing with {fallback.instead}"}
    assert not any(method in word for word in result.used)
    assert result.vectors[1:, 0].any(-1).all()


def test_a_probe_that_is_good_at_some_blocks_is_used_there() -> None:
    samples = world()
    scramble = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    samples.bad[:, 2] = samples.good[:120, 2] + 0.05 * samples.bad[scramble, 3]
    result = found(samples, directions={**PROBE, "min_probe_accuracy": 0.9})
    plain = found(samples)
    assert "after block 1; continuing with the mean difference there" in result.skipped["supervised probe"]
    assert "2 of 3 blocks" in result.used[1]
    assert torch.allclose(result.vectors[2], plain.vectors[2])
    assert not torch.allclose(result.vectors[1], plain.vectors[1], atol=0.1)


def test_the_ensemble_is_what_its_weights_say() -> None:
    parts = {"project_good_mean": False, "supervised_probe": True}
    only_mean = found(directions={"project_good_mean": False}).vectors[:, 0].double()
    only_probe = found(directions={**parts, "ensemble_weight_pca": 0.0}).vectors[:, 0].double()
    mixed = found(directions=parts).vectors[:, 0]
    assert (cosine(mixed, 0.7 * only_probe + 0.3 * only_mean) > 1 - 1e-9).all()
    pca = {**parts, "contrastive_pca": True}
    only_pca = found(directions={**pca, "supervised_probe": False}).vectors[:, 0].double()
    mixed = found(directions=pca).vectors[:, 0]
    assert (cosine(mixed, 0.7 * only_probe + 0.3 * only_pca) > 1 - 1e-9).all()
    with pytest.raises(InputError, match="both 0"):
        found(directions={**parts, "ensemble_weight_pca": 0.0, "ensemble_weight_probe": 0.0})


def test_one_layer_and_identical_embeddings_with_everything_on() -> None:
    samples = Samples(**{k: v if k == "refused" else v[:, :2].clone() for k, v in vars(world()).items()})
    for name in ("bad", "good", "helpful", "plain", "capability"):
        getattr(samples, name)[:, 0] = 3.0
    result = found(samples, None, ALL, GUARDED, ADDED)
    assert result.skipped == {}
    assert not result.vectors[0].any()
    assert torch.isfinite(result.vectors).all()
    assert result.vectors[1].any(-1).all()


def test_protection_that_takes_everything_is_an_error_and_taking_a_layer_is_named() -> None:
    samples = world()
    with pytest.raises(InputError, match="Nothing of the direction is left"):
        found(replace(samples, bad=2.0 * samples.good, refused=None))
    part = samples.bad.clone()
    part[:, 2] = (2.0 * samples.good[:, 2].mean(0)).expand(120, HIDDEN)
    result = found(replace(samples, bad=part))
    assert result.skipped["protection"].startswith("it takes all of the direction after block 1")
    assert not result.vectors[2].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"helpful": torch.zeros(1, LAYERS + 1, HIDDEN)}, "at least two helpful prompts"),
        ({"plain": torch.full((4, LAYERS + 1, HIDDEN), torch.nan)}, "captures of the plain prompts are not finite"),
        ({"refused": torch.ones(3, dtype=torch.bool)}, "3 answers for 120 bad prompts"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(changes, message) -> None:
    with pytest.raises(InputError, match=message):
        found(replace(world(), **changes))


def test_where_it_is_computed_and_how_captures_lie_in_memory_change_nothing() -> None:
    samples, own = world(), torch.device("cpu")
    settings = EngineSettings(directions=Directions(**ALL), protection=Protection(**GUARDED), edit=Edit(**ADDED))  # pyright: ignore[reportArgumentType]
    turned = {
        name: sample if sample is None or name == "refused" else sample.transpose(0, 1).contiguous().transpose(0, 1)
        for name, sample in vars(samples).items()
    }
    one, other = (find_directions(s, settings, device=d) for s, d in ((samples, None), (Samples(**turned), own)))
    for name in ("vectors", "weights", "separation", "strength", "compliance", "protected"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert one.calibration == pytest.approx(other.calibration)


@pytest.mark.parametrize(("model_is_on", "computed_on"), [("cuda:1", "cuda:1"), ("cpu", "cpu"), ("mps", "cpu")])
def test_a_device_without_double_precision_computes_nothing(model_is_on: str, computed_on: str) -> None:
    assert working_device(torch.device(model_is_on)) == torch.device(computed_on)


def test_layers_that_had_to_be_decomposed_are_named(monkeypatch) -> None:
    expected = found(directions={"contrastive_pca": True}).vectors
    monkeypatch.setattr(spectrum, "_LARGE", 1)
    monkeypatch.setattr(spectrum, "_TOLERANCE", 0.0)
    events: list = []
    result = found(None, events.append, {"contrastive_pca": True})
    assert torch.allclose(result.vectors, expected, atol=1e-6)
    assert [event.method for event in events if isinstance(event, Fallback)] == ["fast contrastive PCA"]
    assert "does not converge at 4 of 4 layers" in result.skipped["fast contrastive PCA"]
