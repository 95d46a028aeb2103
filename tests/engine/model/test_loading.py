"""Loading: local folders, data types that give finite numbers, and every way a model can be missing."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from bruno.engine.events import Fallback, ModelLoaded
from bruno.engine.model.architectures import UnsupportedModel
from bruno.engine.model.loading import load
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings, Loading
from tests.engine.models import tiny_model, tiny_tokenizer


def settings_for(folder: Path | str, **loading: object) -> EngineSettings:
    return EngineSettings(model=str(folder), loading=Loading.model_validate({"device": "cpu", **loading}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_and_is_reported(folder: Path) -> None:
    events: list = []
    loaded = load(settings_for(folder, dtype=["bfloat16"], batch_size=5), events.append)
    assert (loaded.family, loaded.layers, loaded.hidden_size, len(loaded.writers)) == ("llama", 4, 48, 8)
    assert loaded.dtype == torch.bfloat16
    assert loaded.source == folder
    assert loaded.default_rows == 5
    assert loaded.tokenizer.padding_side == "left"
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert [type(event) for event in events] == [ModelLoaded]
    assert events[0].dtype == "bfloat16"


def test_a_tokenizer_without_padding_gets_one(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(settings_for(folder), lambda _: None).tokenizer.pad_token_id == 2


def test_threads_are_what_was_asked_for(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load(settings_for(folder, threads=1), lambda _: None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_data_type_that_overflows_gives_way_to_the_next_and_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.mul_(1e4)
    model.model.layers[0].mlp.down_proj.weight.mul_(1e7)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    events: list = []
    loaded = load(settings_for(tmp_path, dtype=["float16", "float32"]), events.append)
    assert loaded.dtype == torch.float32
    assert isinstance(events[0], Fallback)
    assert (events[0].method, events[0].instead) == ("data type float16", "float32")
    with pytest.raises(BrunoError, match="does not run in float16: its logits are not finite"):
        load(settings_for(tmp_path, dtype=["float16"]), events.append)


def test_auto_never_emulates_on_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert load(settings_for(folder, dtype=["auto"]), lambda _: None).dtype == expected


def test_an_architecture_that_cannot_be_edited_whole_is_refused(tmp_path: Path) -> None:
    tiny_model("exaone4", num_key_value_heads=2, sliding_window=16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="exaone4"):
        load(settings_for(tmp_path), lambda _: None)


def test_weights_that_export_could_not_edit_are_refused_before_any_search(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(InputError):
        load(settings_for(folder), lambda _: None)


def test_custom_code_needs_a_word_beforehand(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="invented", auto_map={"AutoConfig": "configuration.Invented"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"own Python code.*--trust-remote-code"):
        load(settings_for(folder), lambda _: None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "No model was named"),
        ("./absent", "no model folder ./absent"),
        ("/absent/model", "no model folder"),
        ("absent", "no model folder absent"),
        ("a/b/c", "no model folder a/b/c"),
        ("owner/absent-model", "owner/absent-model is not on this machine and the hub cannot be reached"),
        ("owner/bad name!", "could not be downloaded"),
    ],
)
def test_a_model_that_is_not_there_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        load(settings_for(name), lambda _: None)


def test_a_folder_without_a_model_and_a_device_that_is_not_there_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model"):
        load(settings_for(tmp_path / "empty"), lambda _: None)
    for device in ("cuda:99", "toaster"):
        with pytest.raises(InputError, match=f"no device {device}"):
            load(settings_for(folder, device=device), lambda _: None)
