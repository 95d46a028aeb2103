"""The arithmetic of a fit against what the library keeps and loads: tiny random models of every family the engine lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bruno.engine.model.architectures import decoder_config
from bruno.engine.model.cache import cache_of, held
from bruno.engine.model.precision import element_size
from bruno.runs.constants import constants
from bruno.runs.fit_report import known_of
from bruno.runs.shape import shape_of
from bruno.runs.stored import read_stored
from bruno.settings.engine import Loading
from tests.engine.models import CONFIGS, tiny_model


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_a_cache_holds_what_the_shape_says(kind: str) -> None:
    model = tiny_model(kind)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)))
    rows, tokens = 2, 7
    cache = cache_of(decoder_config(model))
    model(input_ids=torch.randint(3, 200, (rows, tokens)), past_key_values=cache, use_cache=True)
    blocks = held(cache)
    assert sum(t.numel() for block in blocks for t in block.positions) == shape.token * rows * tokens
    assert sum(t.numel() for block in blocks for t in block.summary) == shape.row * rows


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "deepseek_v3", "gpt_oss", "qwen3_next"])
@pytest.mark.parametrize(("precision", "quantization"), [("bf16", "none"), ("int8", "int8"), ("nf4", "nf4")])
def test_weights_are_what_the_engine_loads(kind: str, precision: str, quantization: str, tmp_path: Path) -> None:
    model = tiny_model(kind, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    weights = known_of(read_stored(str(tmp_path))).weights
    assert weights is not None
    loading = Loading.model_validate({"quantization": quantization})
    real = sum(
        parameter.numel() * element_size(name, parameter, model, loading, torch.bfloat16)
        for name, parameter in model.named_parameters()
    )
    assert weights.loaded(precision, constants()) == pytest.approx(real, rel=0.02)  # type: ignore[arg-type]
