"""A plan says how the model fits; one that cannot is denied before anything is rented; an absent hub is a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bruno.errors import Denied, InputError
from bruno.guard.permit import Origin
from bruno.operator import fitting
from bruno.operator.fitting import alias_of, fit_for, known_model
from bruno.operator.resolve import find_gpu
from bruno.runs.stored import DEMO
from bruno.settings.console import ModelAlias, Settings
from tests.runs.public_shapes import CONFIGS, header

SETTINGS = Settings()


def folder(tmp_path: Path, name: str) -> ModelAlias:
    """A model's metadata on disk; its weights are not there."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    content, _ = header(CONFIGS[name])
    (tmp_path / "model.safetensors").write_bytes(content)
    return ModelAlias(id=str(tmp_path), weights_gb=1)


def test_the_demos_card_says_that_it_fits(world) -> None:
    operator, _ = world
    card = operator.ask("start demo on an H200", origin=Origin.KEYBOARD)
    assert "fits H200 141 GB in bf16: 0.3 weights" in " ".join(" ".join(card.lines()).split())
    assert card.plan.fact("fits").value is True


def test_what_cannot_fit_is_denied_with_what_would(tmp_path: Path) -> None:
    about = folder(tmp_path, "Qwen/Qwen2.5-32B-Instruct")
    with pytest.raises(Denied) as caught:
        fit_for(about, find_gpu("rtx4090", SETTINGS), 1, SETTINGS, SETTINGS)
    said = str(caught.value)
    for part in ("does not fit RTX4090 24 GB in bf16: 65.5 weights", "of 24 GB", "4 x RTX4090", "H100 80 GB in bf16"):
        assert part in said
    assert "\n" not in said


def test_little_room_means_fewer_trials_together(tmp_path: Path) -> None:
    about = folder(tmp_path, "Qwen/Qwen2.5-32B-Instruct")
    found = fit_for(about, find_gpu("h100", SETTINGS), 1, SETTINGS, SETTINGS)
    assert found.fit.verdict == "fits"
    assert found.fewer == found.fit.trial_batch
    assert "fits H100 80 GB in bf16: 65.5 weights" in found.notes()[0]
    assert f"search.trial_batch = {found.fewer}" in found.notes()[1]
    roomy = fit_for(about, find_gpu("b200", SETTINGS), 1, SETTINGS, SETTINGS)
    assert (roomy.fewer, len(roomy.notes())) == (None, 1)


def test_packed_weights_are_denied(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="gpt-oss-20b-BF16"):
        fit_for(folder(tmp_path, "openai/gpt-oss-20b"), find_gpu("h100", SETTINGS), 1, SETTINGS, SETTINGS)


def test_an_absent_hub_is_unknown_and_names_the_settings_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    about = alias_of("qwen32b", SETTINGS)
    assert about is not None
    found = fit_for(about, find_gpu("h100", SETTINGS), 1, SETTINGS, SETTINGS)
    assert (found.fit.verdict, found.fewer) == ("unknown", None)
    assert {fact.name: fact.value for fact in found.facts()} == {"fits": None, "gpu_memory_needed_gb": None}
    assert "weights_gb = 65.5 in the settings" in found.notes()[0]
    with pytest.raises(Denied, match=r"65\.5 weights"):
        fit_for(about, find_gpu("a6000", SETTINGS), 1, SETTINGS, SETTINGS)
    with pytest.raises(fitting.Unreachable):
        known_model("own/unknown", None)


def test_names() -> None:
    assert alias_of("Demo", SETTINGS) == SETTINGS.models["demo"]
    assert alias_of("own/model", SETTINGS) is None
    assert known_model("demo", 0.27).shape is not None
    assert DEMO.tensors is None
    with pytest.raises(InputError, match="no model folder"):
        known_model("./nowhere", None)
