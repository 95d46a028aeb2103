"""Custom code of another repository comes along and loads; everything else keeps its bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bruno.engine.events import Fallback, Notice
from bruno.engine.export.custom_code import localise_code
from tests.engine.models import tiny_model, tiny_tokenizer

MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
CONFIGURATION = """
from transformers import LlamaConfig
from .helper import NAME

class OwnConfig(LlamaConfig):
    model_type = NAME
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizerFast(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as huggingface_hub lays it out, with one repository of code; returns its snapshot."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--other--code"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    files = {
        "modeling_own.py": MODELING,
        "configuration_own.py": CONFIGURATION,
        "tokenization_own.py": TOKENIZER,
        "helper.py": "NAME = 'own'\n",
    }
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model whose code lies in that repository."""
    folder = tmp_path / "source"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "other/code--configuration_own.OwnConfig",
            "AutoModelForCausalLM": "other/code--modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {
        "tokenizer_class": "OwnTokenizerFast",
        "auto_map": {"AutoTokenizer": "other/code--tokenization_own.OwnTokenizerFast"},
        "extra_special_tokens": ["<unk>", "<pad>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


def copied(source: Path) -> Path:
    target = source.with_name("copy")
    shutil.copytree(source, target)
    return target


@pytest.mark.usefixtures("own_modules")
def test_a_model_of_foreign_code_loads_from_its_own_folder(hub: Path, source: Path) -> None:
    target, events = copied(source), []
    localise_code(source, target, events.append)
    assert not [event for event in events if isinstance(event, Fallback)]
    config = json.loads((target / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_own.OwnForCausalLM"
    tokens = json.loads((target / "tokenizer_config.json").read_text())
    assert tokens["auto_map"]["AutoTokenizer"] == [None, "tokenization_own.OwnTokenizerFast"]
    assert tokens["additional_special_tokens"] == ["<unk>", "<pad>"] and "extra_special_tokens" not in tokens
    for name in ("modeling_own.py", "configuration_own.py", "helper.py", "tokenization_own.py"):
        assert (target / name).read_bytes() == (hub / name).read_bytes()
    shutil.rmtree(hub)  # the other repository is gone
    model = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True, dtype=torch.float32)
    assert type(model).__name__ == "OwnForCausalLM"
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny_model("llama")(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
    assert type(tokenizer).__name__ == "OwnTokenizerFast" and "<unk>" in tokenizer.extra_special_tokens


def test_code_that_is_not_here_stays_a_reference_and_is_said(source: Path, hub: Path) -> None:
    (hub / "helper.py").unlink()
    target, events = copied(source), []
    localise_code(source, target, events.append)
    told = [event for event in events if isinstance(event, Fallback)]
    assert [("helper.py" in event.reason) for event in told] == [True, True]  # both need it
    config = json.loads((target / "config.json").read_text())
    assert config["auto_map"]["AutoConfig"] == "other/code--configuration_own.OwnConfig"
    assert not (target / "configuration_own.py").exists() and (target / "tokenization_own.py").exists()


def test_a_file_of_the_same_name_is_never_replaced(source: Path, hub: Path) -> None:
    (source / "helper.py").write_text("NAME = 'mine'\n")
    target, events = copied(source), []
    localise_code(source, target, events.append)
    assert (target / "helper.py").read_text() == "NAME = 'mine'\n"
    assert any("another file called helper.py" in event.reason for event in events if isinstance(event, Fallback))


@pytest.mark.parametrize(
    ("auto_map", "expected", "told"),
    [
        ({"AutoConfig": "configuration_own.OwnConfig"}, None, 0),
        (
            {"AutoTokenizer": ["other/code--tokenization_own.A", None]},
            {"AutoTokenizer": ["tokenization_own.A", None]},
            0,
        ),
        ({"AutoTokenizer": "tokenization_own.A"}, {"AutoTokenizer": ["tokenization_own.A", None]}, 0),
        (["other/code--tokenization_own.A", None], ["tokenization_own.A", None], 0),
        ({"AutoModel": "other/code--../../etc/passwd.A"}, None, 1),
        ({"AutoModel": "../..--modeling_own.A"}, None, 1),
        ({"AutoModel": "no/where--modeling_own.A"}, None, 1),
        ({"AutoModel": 3}, None, 0),
    ],
)
def test_references(tmp_path: Path, hub: Path, auto_map, expected, told: int) -> None:
    text = json.dumps({"auto_map": auto_map, "x": 1.50})
    (tmp_path / "partial").mkdir()
    path = tmp_path / "partial" / "config.json"
    path.write_text(text)
    events: list = []
    localise_code(tmp_path, tmp_path / "partial", events.append)
    assert len(events) == told
    if expected is None:
        assert path.read_text() == text  # byte for byte
    else:
        assert json.loads(path.read_text()) == {"auto_map": expected, "x": 1.5}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"extra_special_tokens": []}, {}),
        ({"extra_special_tokens": {"image": "<i>"}}, None),
        (
            {"extra_special_tokens": ["<a>", "<b>"], "additional_special_tokens": ["<b>"]},
            {"additional_special_tokens": ["<b>", "<a>"]},
        ),
        ("not a table", None),
    ],
)
def test_extra_special_tokens(tmp_path: Path, before, after) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(before))
    events: list = []
    localise_code(tmp_path, tmp_path, events.append)
    assert json.loads(path.read_text()) == (before if after is None else after)
    assert [type(event) for event in events] == ([] if after is None else [Notice])
