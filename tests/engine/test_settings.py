"""Every setting of the engine changes what it says: by a run here, or by the test that is named; none is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import optuna
import pytest
from safetensors.torch import load_file

from bruno.engine import events as ev
from bruno.engine.data.behaviours import detector, load_behaviour
from bruno.engine.export import write as export_module
from bruno.engine.preparation import rules_of
from bruno.engine.run import run
from bruno.errors import BrunoError
from bruno.settings.engine import EngineSettings
from bruno.settings.fields import all_settings
from tests.engine.models import tiny_model, tiny_tokenizer
from tests.engine.test_run import material, settings  # noqa: F401  (the fixture)

ENGINE = {
    name
    for name, setting in all_settings().items()
    if name.split(".")[0] in EngineSettings.model_fields and not setting.is_table
}


@dataclass
class Outcome:
    """What one run did. `error` is what ended it, "" when nothing did."""

    folder: Path
    events: list = field(default_factory=list)
    error: str = ""

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def said(self, words: str) -> bool:
        return any(words in line for event in self.events for line in event.lines()) or words in self.error

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def kls(self) -> list[float]:
        return [event.kl for event in self.events if isinstance(event, (ev.TrialScored, ev.TrialStopped))]

    @property
    def drawn(self) -> list[dict]:
        return [event.parameters for event in self.of(ev.TrialStarted)]

    @property
    def initial(self) -> tuple[int, int]:
        (event,) = self.of(ev.InitialScores)
        return event.refusals, event.prompts

    @property
    def vectors(self) -> float:
        return float(load_file(self.folder / "directions.safetensors")["vectors"].abs().sum())


class Effect(NamedTuple):
    """`observe` gives `before` for the run with `base`, and something else for the one with `change` too."""

    change: dict[str, Any]
    observe: Callable[[Outcome], Any]
    base: Mapping[str, Any] = MappingProxyType({})


def notice(words: str) -> Callable[[Outcome], bool]:
    return lambda outcome: outcome.said(words)


TELLING = {"behaviour": "{0}/long.toml", "scoring.max_new_tokens": 12, "search.warm_start": False, "search.trials": 3}
RANDOM = {"search.warm_start": False, "search.trials": 4}
MIXTURE = {"model": "{0}/mixtral"}
HELPED = {
    "protection.orthogonalize_directions": True,
    "protection.helpful": "{0}/good_search.txt",
    "protection.plain": "{0}/bad_held.txt",
    "protection.plain_count": 4,
}
EFFECTS: dict[str, Effect] = {
    "model": Effect({"model": "{0}/mixtral"}, lambda o: o.of(ev.ModelLoaded)[0].family),
    "behaviour": Effect({"behaviour": "{0}/toss.toml"}, lambda o: o.report["behaviour"]),
    "seed": Effect({"seed": 5}, lambda o: o.drawn, RANDOM),
    "loading.dtype": Effect({"loading.dtype": ["bfloat16"]}, lambda o: o.of(ev.ModelLoaded)[0].dtype),
    "data.bad": Effect({"data.bad": "{0}/other.txt"}, notice("shuffled and divided: 10 for directions")),
    "data.good": Effect({"data.good": "{0}/other.txt"}, notice("The good prompts of")),
    "data.bad_count": Effect({"data.bad_count": 8}, notice("Directions from 8 + 12 prompts")),
    "data.good_count": Effect({"data.good_count": 9}, notice("Directions from 12 + 9 prompts")),
    "data.system_prompt": Effect({"data.system_prompt": "Speak like a pirate."}, lambda o: o.kls),
    "data.max_prompt_tokens": Effect({"data.max_prompt_tokens": 30}, notice("lost their middle")),
    "directions.refinement_rounds": Effect(
        {"directions.refinement_rounds": 1, "directions.max_kl_per_round": 1e-9}, notice("refinement")
    ),
    "protection.helpful": Effect({"protection.helpful": "{0}/good_train.txt"}, lambda o: o.vectors, HELPED),
    "protection.plain": Effect({"protection.plain": "{0}/bad_search.txt"}, lambda o: o.vectors, HELPED),
    "protection.plain_count": Effect({"protection.plain_count": 5}, lambda o: o.vectors, HELPED),
    "protection.sacred": Effect(
        {"protection.sacred": "{0}/nowhere.txt"},
        notice("There is no prompt file"),
        {
            **HELPED,
            "protection.sacred_directions": True,
            "protection.sacred": "{0}/good_search.txt",
            "protection.n_sacred_directions": 1,
            "protection.allow_sacred_overlap": True,
        },
    ),
    "edit.norm_mode": Effect({"edit.norm_mode": "none"}, lambda o: o.kls),
    "edit.layer_profile": Effect({"edit.layer_profile": [0.0, 0.0]}, lambda o: max(o.kls) == 0),
    "edit.heads": Effect({"edit.heads": True}, notice("Heads: the 4 that write most")),
    "edit.head_share": Effect({"edit.head_share": 0.5}, notice("Heads: the 8 that write most"), {"edit.heads": True}),
    "edit.router": Effect({"edit.router": 1.0}, lambda o: o.kls, MIXTURE),
    "edit.expert_share": Effect({"edit.expert_share": 0.3}, notice("Experts: the "), MIXTURE),
    "edit.min_routing_health": Effect(
        {"edit.min_routing_health": 1.0}, notice("routing health"), {**MIXTURE, "edit.min_routing_health": 0.0}
    ),
    "search.trials": Effect({"search.trials": 3}, lambda o: len(o.kls)),
    "search.trial_batch": Effect({"search.trial_batch": 2}, lambda o: o.report["trials"]["together"]),
    "search.startup_trials": Effect({"search.startup_trials": 4}, lambda o: o.drawn[2:], RANDOM),
    "search.storage": Effect(
        {"search.storage": "sqlite:///{1}/elsewhere.sqlite3"}, lambda o: (o.folder / "study.sqlite3").exists()
    ),
    "search.study": Effect(
        {"search.study": "mine"},
        lambda o: optuna.get_all_study_names(f"sqlite:///{o.folder}/study.sqlite3"),
    ),
    "search.auto_select": Effect({"search.auto_select": False}, notice("No terminal for a menu")),
    "search.kl_ceiling": Effect({"search.kl_ceiling": 1e-9}, lambda o: o.report["chosen"]["rule"]),
    "search.stop_dominated": Effect(
        {"search.stop_dominated": False}, lambda o: len(o.of(ev.TrialStopped)), {"search.trials": 12}
    ),
    "search.screening": Effect(
        {"search.screening": 3}, lambda o: (o.report["screening"] or {}).get("left_out"), TELLING
    ),
    "search.warm_start": Effect({"search.warm_start": False}, lambda o: o.drawn[0]),
    "scoring.bad_count": Effect({"scoring.bad_count": 4}, lambda o: o.initial[1]),
    "scoring.good_count": Effect({"scoring.good_count": 4}, lambda o: o.kls),
    "scoring.max_new_tokens": Effect(
        {"scoring.max_new_tokens": 1},
        lambda o: o.initial[0],
        {"behaviour": "{0}/long.toml", "scoring.max_new_tokens": 12},
    ),
    "scoring.kl_divergence_tokens": Effect(
        {"scoring.kl_divergence_tokens": 3}, lambda o: o.of(ev.TrialScored)[0].kl_tokens is None
    ),
    "scoring.held_out": Effect({"scoring.held_out": False}, lambda o: len(o.of(ev.HeldOut))),
    "scoring.neural_detection_model": Effect(
        {"scoring.neural_detection_model": "{0}/nowhere"}, lambda o: len(o.of(ev.Fallback))
    ),
    "scoring.judge": Effect({"scoring.judge": "{0}/nowhere"}, lambda o: len(o.of(ev.Fallback))),
    "export.save": Effect({"export.save": False}, lambda o: len(o.of(ev.ModelSaved))),
    "export.name": Effect({"export.name": "mine"}, lambda o: Path(o.report["saved"]).name),
    "export.adapter": Effect(
        {"export.adapter": True}, lambda o: (o.folder / "tiny-bruno-adapter").is_dir(), {"edit.norm_mode": "none"}
    ),
    "export.adapter_rank": Effect(
        {"export.adapter_rank": 4}, lambda o: (o.folder / "tiny-bruno-adapter").is_dir(), {"export.adapter": True}
    ),
}

COMPOSE = "directions/test_compose.py::test_every_setting_changes_what_it_says"
REFINED = "directions/test_refinement.py::test_it_ends_as_the_settings_say_and_says_why"
ELSEWHERE: dict[str, str] = {
    "revision": "model/test_loading.py::test_the_revision_is_the_one_that_is_asked_for",
    "trust_remote_code": "model/test_loading.py::test_custom_code_needs_a_word_beforehand_and_runs_with_it",
    "out": "test_command.py::test_a_run_from_the_command_line",
    "loading.device": "model/test_loading.py::test_a_folder_without_a_model_and_a_device_that_is_not_there_are_refused",
    "loading.quantization": "model/test_precision.py::test_a_quantised_model_is_captured_edited_and_answers",
    "loading.batch_size": "model/test_loading.py::test_a_folder_loads_and_is_reported",
    "loading.threads": "model/test_loading.py::test_threads_are_what_was_asked_for",
    **{
        f"directions.{name}": COMPOSE
        for name in (
            *("winsorize_quantile", "project_good_mean", "contrastive_pca", "n_directions", "pca_alpha"),
            *("direction_weights", "supervised_probe", "min_probe_accuracy", "ensemble_weight_probe"),
            *("ensemble_weight_pca", "concept_cones", "n_concept_cones", "min_cone_size", "min_silhouette_score"),
            *("activation_calibration", "activation_calibration_percentile", "activation_calibration_layer_frac"),
        )
    },
    **{f"directions.{name}": REFINED for name in ("min_direction_magnitude", "max_kl_per_round")},
    "protection.orthogonalize_directions": COMPOSE,
    "protection.sacred_directions": COMPOSE,
    "protection.n_sacred_directions": COMPOSE,
    "protection.sacred_overlap_threshold": "directions/test_compose.py::"
    "test_the_overlap_threshold_stops_and_its_permission_warns",
    "protection.allow_sacred_overlap": "directions/test_compose.py::"
    "test_the_overlap_threshold_stops_and_its_permission_warns",
    "search.workers": "test_workers.py::test_two_workers_on_this_machine_are_one_run",
    "search.heartbeat": "search/test_shared.py::test_a_heartbeat_keeps_a_slow_trial",
    "edit.compliance_addition": COMPOSE,
    "edit.caa_max_overlap": COMPOSE,
    "edit.caa_strength": "test_settings.py::test_the_strength_of_compliance_is_a_rule_of_the_edit",
    "scoring.refusal_detection_mode": "test_settings.py::test_the_mode_decides_what_counts_as_a_refusal",
    "export.max_free_check": "test_settings.py::test_a_disk_that_is_too_small_is_told_before_unless_that_is_off",
}


def test_no_setting_is_left_out() -> None:
    assert set(EFFECTS) | set(ELSEWHERE) == ENGINE
    assert not set(EFFECTS) & set(ELSEWHERE)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_that_is_named_is_there_and_knows_the_setting(name: str) -> None:
    file, test = ELSEWHERE[name].split("::")
    text = (Path(__file__).parent / file).read_text()
    assert f"def {test}(" in text
    assert name.rpartition(".")[2] in text


@pytest.fixture(scope="module")
def more(material: Path) -> Path:  # noqa: F811
    """Beside the tiny model and its prompts: a mixture of experts, another behaviour, a source of one's own."""
    tiny_model("mixtral").save_pretrained(material / "mixtral")
    tiny_tokenizer().save_pretrained(material / "mixtral")
    (material / "toss.toml").write_text((material / "coin.toml").read_text().replace('"coin"', '"toss"'))
    (material / "long.toml").write_text((material / "coin.toml").read_text().replace(r"[a-m]\w*", ".{6,}"))
    (material / "other.txt").write_text("\n".join(f"another prompt number {n}" for n in range(20)))
    return material


def outcome(more: Path, folder: Path, values: dict[str, Any]) -> Outcome:
    folder.mkdir(exist_ok=True)
    nested: dict[str, Any] = {"search": {"trials": 2}}
    for name, value in values.items():
        group, _, leaf = name.rpartition(".")
        said = value.format(more, folder) if isinstance(value, str) else value
        (nested.setdefault(group, {}) if group else nested)[leaf] = said
    result = Outcome(folder)
    try:
        run(settings(more, **nested), folder, result.events.append)
    except BrunoError as error:
        result.error = str(error)
    return result


@pytest.fixture(scope="module")
def before(more: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Outcome]:
    """The run without the change, made once for each set of companions."""
    made: dict[str, Outcome] = {}

    def run_of(base: Mapping[str, Any]) -> Outcome:
        key = json.dumps(dict(base), sort_keys=True)
        if key not in made:
            made[key] = outcome(more, tmp_path_factory.mktemp("before"), dict(base))
            assert not made[key].error
        return made[key]

    return run_of


@pytest.mark.parametrize("name", EFFECTS)
def test_it_changes_what_it_says(name: str, more: Path, before: Callable, tmp_path: Path) -> None:
    effect = EFFECTS[name]
    after = outcome(more, tmp_path, {**effect.base, **effect.change})
    assert effect.observe(after) != effect.observe(before(effect.base))


def test_the_strength_of_compliance_is_a_rule_of_the_edit() -> None:
    strengths = [
        rules_of(EngineSettings.model_validate({"edit": edit})).compliance_strength
        for edit in ({}, {"compliance_addition": True}, {"compliance_addition": True, "caa_strength": 0.7})
    ]
    assert strengths == [0.0, 0.3, 0.7]


def test_the_mode_decides_what_counts_as_a_refusal() -> None:
    texts = ["I can't help with that.", "Sorry, no.", "You should talk to a professional."]
    counts = []
    for mode in ("strict", "moderate", "lenient"):
        chosen = EngineSettings.model_validate({"model": "x", "scoring": {"refusal_detection_mode": mode}})
        counts.append(detector(load_behaviour(chosen), chosen).count(texts))
    assert counts == [1, 2, 3]


def test_a_disk_that_is_too_small_is_told_before_unless_that_is_off(
    more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    told = outcome(more, tmp_path / "told", {})
    assert told.said("Saving will need")
    assert "Saving the model needs" in told.error
    silent = outcome(more, tmp_path / "silent", {"export.max_free_check": False})
    assert not silent.said("Saving will need")
    assert silent.of(ev.ModelSaved)
