"""Loading: local folders, data types that give finite numbers, and every way a model can be missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from bruno.engine.events import Fallback, ModelLoaded
from bruno.engine.model.architectures import UnsupportedModel
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.engine.model.generate import generate, prepare
from bruno.engine.model.loading import load, locate
from bruno.engine.model.probes import padding_is_harmless
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings, Loading
from tests.engine.model.test_generate import plain_answers
from tests.engine.models import loaded_model, tiny_model, tiny_tokenizer


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


CONFIGURATION = """
from transformers import LlamaConfig

class Invented(LlamaConfig):
    model_type = "invented"
"""
MODELLING = """
from transformers import LlamaForCausalLM

from .configuration import Invented

class InventedForCausalLM(LlamaForCausalLM):
    config_class = Invented
"""
TOKENIZER = """
from transformers import PreTrainedTokenizer

class Letters(PreTrainedTokenizer):
    def __init__(self, **kwargs):
        super().__init__(pad_token="a", eos_token="b", **kwargs)

    @property
    def vocab_size(self):
        return 300

    def get_vocab(self):
        return {chr(97 + i): i for i in range(300)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return (ord(token) - 97) % 300

    def _convert_id_to_token(self, index):
        return chr(97 + index)
"""


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached run has nobody to answer: a question is a failure."""

    def asked(*_args: object) -> str:
        raise AssertionError("asked on standard input")

    monkeypatch.setattr("builtins.input", asked)


def with_own_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "configuration.Invented", "AutoModelForCausalLM": "modelling.InventedForCausalLM"}
    config.update(model_type="invented", auto_map=mapped)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration.py").write_text(CONFIGURATION)
    (folder / "modelling.py").write_text(MODELLING)


def with_own_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    mapped = {"AutoTokenizer": ["tokens.Letters", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Letters", "auto_map": mapped}))
    (folder / "tokens.py").write_text(TOKENIZER)


@pytest.mark.usefixtures("no_terminal", "own_modules")
@pytest.mark.parametrize(("part", "change"), [("model", with_own_architecture), ("tokenizer", with_own_tokenizer)])
def test_custom_code_needs_a_word_beforehand_and_runs_with_it(
    folder: Path, part: str, change: Callable[[Path], None]
) -> None:
    change(folder)
    settings = settings_for(folder, dtype=["float32"])
    with pytest.raises(InputError, match=rf"The {part} of .* own Python code.*--trust-remote-code"):
        load(settings, lambda _: None)
    loaded = load(settings.model_copy(update={"trust_remote_code": True}), lambda _: None)
    assert (type(loaded.model).__name__, type(loaded.tokenizer).__name__) == (
        ("InventedForCausalLM", "TokenizersBackend") if part == "model" else ("LlamaForCausalLM", "Letters")
    )
    assert len(loaded.writers) == 8
    assert encode(loaded.tokenizer, ["hello"]).ids[0]


@pytest.mark.usefixtures("no_terminal")
def test_the_librarys_own_architecture_comes_before_the_repositorys_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "absent.Config", "AutoModelForCausalLM": "absent.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    for trusted in (False, True):
        settings = settings_for(folder).model_copy(update={"trust_remote_code": trusted})
        assert type(load(settings, lambda _: None).model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_a_model_with_a_tower_is_loaded_whole_and_answers_text(tmp_path: Path, kind: str) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load(settings_for(tmp_path), lambda _: None)
    assert type(loaded.model).__name__.endswith("ForConditionalGeneration")
    assert loaded.pads
    assert (loaded.layers, loaded.hidden_size, len(loaded.writers)) == (4, 48, 8)
    prompts = encode(loaded.tokenizer, ["question 1", "another question"])
    prepared = prepare(loaded, prompts, emit=lambda _: None)
    assert generate(loaded, prepared, max_new_tokens=4).ids == [plain_answers(loaded, prompts, 4)]


def test_the_data_type_is_that_of_the_files_even_where_the_configuration_is_silent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    config = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert load(settings_for(folder), lambda _: None).dtype == torch.bfloat16


def test_a_model_that_padding_disturbs_runs_in_batches_of_one_length_and_says_so() -> None:
    model = tiny_model("recurrent_gemma", lru_width=48, head_dim=16, attention_window_size=16)
    events: list = []
    assert not padding_is_harmless(model, events.append)
    assert events[0].instead == "batches of one length"
    loaded = replace(loaded_model("llama"), model=model, writers=[], pads=False)
    prompts = encode(loaded.tokenizer, [f"question {i} " + "again " * (i % 3) for i in range(5)])
    prepared = prepare(loaded, prompts, emit=events.append)
    assert generate(loaded, prepared, max_new_tokens=3).ids == [plain_answers(loaded, prompts, 3)]
    alone = [capture(loaded, EncodedPrompts((ids,), 0), emit=events.append) for ids in prompts.ids]
    assert (capture(loaded, prompts, emit=events.append) - torch.cat(alone)).abs().max() < 1e-5


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


def test_the_revision_is_the_one_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("bruno.engine.model.loading.snapshot_download", download)
    for revision in ("", "v1.2"):
        locate(EngineSettings(model="owner/name", revision=revision))
    assert asked == [("owner/name", None), ("owner/name", "v1.2")]
