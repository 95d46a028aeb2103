"""Writers: every family of the table whole, unknown dense decoders by discovery, everything doubtful refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bruno.engine.model.architectures import (
    ATTENTION,
    COMPONENTS,
    FAMILIES,
    MLP,
    UnsupportedModel,
    Writer,
    find_writers,
    residual_error,
)
from tests.engine.models import CONFIGS, tiny_model


def test_every_family_of_the_table_is_tested() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_writers_of_a_family_explain_its_residual_stream(kind: str) -> None:
    model = tiny_model(kind)
    writers = find_writers(model)
    assert [(w.layer, w.component) for w in writers] == [(i, c) for i in range(4) for c in COMPONENTS]
    assert all(model.get_submodule(w.name) is w.module for w in writers)
    assert all(w.weight().shape == w.weight_shape for w in writers)
    assert residual_error(model, writers) < 1e-3


@pytest.mark.parametrize("kind", ["gemma2", "olmo2"])
def test_a_forgotten_post_norm_shows(kind: str) -> None:
    model = tiny_model(kind)
    bare = [Writer(w.layer, w.component, w.module, w.name) for w in find_writers(model)]
    assert residual_error(model, bare) > 0.1


def test_a_forgotten_writer_shows() -> None:
    model = tiny_model("llama")
    writers = [w for w in find_writers(model) if w.component == MLP or w.layer != 2]
    assert residual_error(model, writers) > 0.1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"n_inner": 80}),
        ("starcoder2", {"num_key_value_heads": 2}),
        ("cohere", {"num_key_value_heads": 2}),
        ("stablelm", {"num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
        ("phi", {}),
        ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 48}),
        ("smollm3", {"num_key_value_heads": 2}),
    ],
)
def test_unknown_dense_decoders_are_discovered(kind: str, changes: dict) -> None:
    assert kind not in FAMILIES
    model = tiny_model(kind, **changes)
    writers = find_writers(model)
    assert [(w.layer, w.component) for w in writers] == [(i, c) for i in range(4) for c in COMPONENTS]
    assert all(w.weight().shape == w.weight_shape for w in writers)
    assert all(w.transposed == (kind == "gpt2") for w in writers)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mixtral", {"num_local_experts": 4, "num_key_value_heads": 2}, "mixture of experts"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "num_key_value_heads": 2}, "mixture of experts"),
        ("exaone4", {"num_key_value_heads": 2, "sliding_window": 16}, "not in the table.*relative error"),
        ("mamba", {"state_size": 4}, "linear_attention layers"),
    ],
)
def test_what_is_not_known_whole_is_refused_and_says_what_was_found(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        find_writers(tiny_model(kind, **changes))


def test_linear_attention_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.config.layer_types = ["linear_attention", "full_attention"] * 2
    with pytest.raises(UnsupportedModel, match="linear_attention layers"):
        find_writers(model)


def test_a_model_with_a_tower_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.config.vision_config = {"depth": 2}
    with pytest.raises(UnsupportedModel, match="vision_config"):
        find_writers(model)


def test_a_partial_match_lists_what_is_missing() -> None:
    model = tiny_model("llama")
    del model.model.layers[2].mlp.down_proj
    with pytest.raises(UnsupportedModel, match=r"8 writers, found 7; missing model\.layers\.2\.mlp\.down_proj"):
        find_writers(model)


def test_two_candidates_for_one_writer_are_doubtful() -> None:
    model = tiny_model("starcoder2", num_key_value_heads=2)
    model.model.layers[1].self_attn.out_proj = nn.Linear(48, 48)
    with pytest.raises(UnsupportedModel, match=rf"block 1 has 2 candidates for {ATTENTION}: .*o_proj.*out_proj"):
        find_writers(model)


def test_a_writer_in_half_precision_is_given_in_single() -> None:
    writer = find_writers(tiny_model("qwen2", dtype=torch.bfloat16))[0]
    assert writer.weight().dtype == torch.float32
