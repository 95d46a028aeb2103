"""Number formats: the files say the data type; quantised models are captured, edited and answer; experts stay, in the open."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig

from bruno.engine.edits.build import Kernel, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Notice
from bruno.engine.model.architectures import ATTENTION, COMPONENTS
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import encode
from bruno.engine.model.generate import first_token_logprobs, generate, prepare
from bruno.engine.model.loading import load
from bruno.engine.model.precision import quantization_config, stored_dtype
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings, Loading
from tests.engine.edits.test_build import random_directions
from tests.engine.model.test_generate import PROMPTS, edits_for, plain_answers
from tests.engine.models import tiny_model, tiny_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the extra `quantised`)"
)


@pytest.mark.parametrize(
    ("weights", "said", "expected"),
    [
        ({"w": torch.zeros(8, 8, dtype=torch.bfloat16), "norm": torch.zeros(8)}, None, "bfloat16"),
        ({"w": torch.zeros(8, 8, dtype=torch.bfloat16)}, "float32", "bfloat16"),  # would double the memory
        ({"w": torch.zeros(8, 8, dtype=torch.float16)}, "bfloat16", "float16"),
        (
            {"packed": torch.zeros(99, 9, dtype=torch.uint8), "norm": torch.zeros(8, dtype=torch.bfloat16)},
            None,
            "bfloat16",
        ),
        ({}, "bfloat16", "bfloat16"),
        ({}, None, "float32"),
    ],
)
def test_the_files_say_the_data_type(tmp_path: Path, weights: dict, said: str | None, expected: str) -> None:
    if weights:
        save_file(weights, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    assert stored_dtype(tmp_path, AutoConfig.for_model("llama", dtype=said)) == expected


def quantised(folder: Path, kind: str, quantization: str, events: list, **changes: object):
    """A tiny model, stored in bfloat16 and loaded quantised."""
    tiny_model(kind, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128, **changes).save_pretrained(folder)  # type: ignore[arg-type]
    tiny_tokenizer().save_pretrained(folder)
    loading = Loading.model_validate({"device": "cpu", "quantization": quantization, "dtype": ["bfloat16"]})
    return load(EngineSettings(model=str(folder), loading=loading), events.append)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "error"), [("nf4", 0.15), ("int8", 0.02)])
def test_a_quantised_model_is_captured_edited_and_answers(tmp_path: Path, quantization: str, error: float) -> None:
    loaded = quantised(tmp_path, "llama", quantization, [])
    original = tiny_model("llama", dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    prompts = encode(loaded.tokenizer, PROMPTS[:4])
    events: list = []
    prepared = prepare(loaded, prompts, emit=events.append, rows=3)
    assert events == []
    assert torch.isfinite(capture(loaded, prompts, emit=lambda _: None)).all()
    for writer in loaded.writers:  # after passes, because some kernels repack the weights then
        assert type(writer.module) is not nn.Linear
        weight = original.get_submodule(writer.name).weight.float()
        assert (writer.weight() - weight).norm() / weight.norm() < error
    base = generate(loaded, prepared, max_new_tokens=5).ids[0]
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        answers = generate(loaded, prepared, max_new_tokens=5, session=session).ids
        scores = first_token_logprobs(loaded, prepared, session=session)
    assert answers[2] == base
    assert answers[0] != base
    assert torch.equal(scores[2], first_token_logprobs(loaded, prepared)[0])


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_edit_of_a_quantised_model_removes_the_direction(tmp_path: Path, quantization: str) -> None:
    loaded = quantised(tmp_path, "llama", quantization, [])
    directions = random_directions(loaded.layers, loaded.hidden_size)
    edit = TrialEdit("per layer", None, {name: Kernel(1.0, 2, 1.0, 4) for name in COMPONENTS})
    written: dict[str, torch.Tensor] = {}
    with EditSession(loaded.writers, max_trials=1) as session:
        session.write(build_edits([edit], directions, loaded.writers))
        handles = [
            w.module.register_forward_hook(lambda _m, _a, y, name=w.name: written.update({name: y.float()}))
            for w in loaded.writers
        ]
        loaded.model(torch.arange(5, 15)[None], use_cache=False)
        for handle in handles:
            handle.remove()
    for writer in loaded.writers:
        kept = written[writer.name] @ directions.vectors[writer.layer + 1, 0]
        assert kept.abs().max() < 0.02 * written[writer.name].norm(dim=-1).max()
    assert any(writer.component == ATTENTION for writer in loaded.writers)


@needs_bitsandbytes
def test_fused_experts_stay_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    events: list = []
    loaded = quantised(tmp_path, "qwen3_moe", "nf4", events, num_experts=16, moe_intermediate_size=64)
    warning = next(event for event in events if isinstance(event, Notice))
    assert warning.level == "warning"
    assert "experts fused into single parameters" in warning.text
    kinds = {type(writer.module).__name__ for writer in loaded.writers}
    assert kinds == {"Linear4bit", "Qwen3MoeExperts"}
    prompts = encode(loaded.tokenizer, PROMPTS[:3])
    prepared = prepare(loaded, prompts, emit=events.append)
    assert generate(loaded, prepared, max_new_tokens=3).ids == [plain_answers(loaded, prompts, 3)]


def test_without_bitsandbytes_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(InputError, match=r"quantization nf4 needs bitsandbytes.*pip install"):
        quantised(tmp_path, "llama", "nf4", [])


@pytest.mark.parametrize(
    ("method", "wanted", "message"),
    [
        ("gptq", "none", r"quantised already \(gptq\).*original, unquantised"),
        ("bitsandbytes", "none", r"quantised already \(bitsandbytes\)"),
        ("mxfp4", "nf4", r"stored in mxfp4.*once more"),
    ],
)
def test_packed_checkpoints_that_cannot_be_edited_are_refused(method: str, wanted: str, message: str) -> None:
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": method})
    loading = Loading.model_validate({"quantization": wanted})
    with pytest.raises(InputError, match=message):
        quantization_config(loading, config, torch.bfloat16, lambda _: None)


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_checkpoints_in_small_floats_are_unpacked_and_it_is_said(method: str) -> None:
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": method})
    events: list = []
    result = quantization_config(Loading(), config, torch.bfloat16, events.append)
    assert result is not None
    assert result.dequantize
    assert f"stored in {method}; they are unpacked to bfloat16" in events[0].text
