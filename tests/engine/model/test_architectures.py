"""Writers: every family of the table whole, unknown dense decoders by discovery, everything doubtful refused."""

from __future__ import annotations

from pathlib import Path

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
    decoder_config,
    find_blocks,
    find_mixtures,
    find_writers,
)
from bruno.engine.model.families import WITH_TOWERS
from bruno.engine.model.residual_check import residual_error
from tests.engine.models import CONFIGS, VISION, experts_as_modules, tiny_model

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "qwen3_5_moe_text")


def test_every_family_of_the_table_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "engine.md").read_text()
    assert [name for name in {**FAMILIES, **dict.fromkeys(WITH_TOWERS)} if f"`{name}`" not in page] == []


def test_every_family_of_the_table_is_tested() -> None:
    behind_towers = {decoder_config(tiny_model(kind)).model_type for kind in VISION}
    assert set(CONFIGS) | behind_towers == set(FAMILIES)
    assert set(MIXTURES) == {kind for kind, family in FAMILIES.items() if family.mixture}
    assert set(VISION) == WITH_TOWERS


@pytest.mark.parametrize("kind", [*CONFIGS, *VISION])
def test_the_writers_of_a_family_explain_its_residual_stream(kind: str) -> None:
    model = tiny_model(kind)
    writers = find_writers(model)
    assert list(dict.fromkeys((w.layer, w.component) for w in writers)) == [
        (i, c) for i in range(4) for c in COMPONENTS
    ]
    assert all(model.get_submodule(w.name) is w.module for w in writers)
    assert all(model.get_parameter(w.weight_name) is not None for w in writers)
    assert all(w.weight().shape == w.weight_shape for w in writers)
    assert all((w.heads == 4) == (w.component == ATTENTION) for w in writers)
    assert residual_error(model, find_blocks(model), writers) < 1e-3


@pytest.mark.parametrize(
    ("kind", "mixtures", "shared"),
    [("mixtral", 4, 0), ("qwen2_moe", 3, 3), ("deepseek_v3", 3, 3), ("gpt_oss", 4, 0), ("qwen3_next", 4, 4)],
)
def test_routed_experts_shared_experts_and_routers_are_all_found(kind: str, mixtures: int, shared: int) -> None:
    model = tiny_model(kind)
    writers = find_writers(model)
    found = find_mixtures(writers)
    assert len(found) == mixtures
    assert all(m.experts == 4 and m.fused and model.get_submodule(m.router_name) is m.router for m in found)
    assert sum("shared" in w.name for w in writers) == shared
    assert [w.experts for w in writers if w.mixture] == [4] * mixtures


def test_experts_that_are_modules_of_their_own_are_ordinary_writers() -> None:
    model = experts_as_modules(tiny_model("deepseek_v3"))
    writers = find_writers(model)
    routed = [w for w in writers if w.expert is not None]
    assert [w.expert for w in routed] == [0, 1, 2, 3] * 3
    assert routed[5].name == "model.layers.2.mlp.experts.1.down_proj"
    assert [m.fused for m in find_mixtures(writers)] == [False] * 3
    assert residual_error(model, find_blocks(model), writers) < 1e-3


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_forgotten_expert_shows(kind: str) -> None:
    model = tiny_model(kind)
    writers = find_writers(model)
    last = next(w for w in reversed(writers) if w.layer == 3 and w.component == MLP)
    worst = residual_error(model, find_blocks(model), [w for w in writers if w is not last])
    assert worst > 0.1


def test_a_mixture_without_all_its_parts_lists_what_is_missing() -> None:
    model = tiny_model("qwen2_moe")
    del model.model.layers[2].mlp.shared_expert.down_proj
    with pytest.raises(UnsupportedModel, match=r"missing model\.layers\.2\.mlp\.shared_expert\.down_proj"):
        find_writers(model)
    model = experts_as_modules(tiny_model("deepseek_v3"))
    del model.model.layers[3].mlp.experts[2]
    with pytest.raises(UnsupportedModel, match=r"layers\.3\.mlp\.experts \(3 of the 4 experts"):
        find_writers(model)


@pytest.mark.parametrize("kind", ["gemma2", "olmo2"])
def test_a_forgotten_post_norm_shows(kind: str) -> None:
    model = tiny_model(kind)
    bare = [Writer(w.layer, w.component, w.module, w.name) for w in find_writers(model)]
    assert residual_error(model, find_blocks(model), bare) > 0.1


def test_a_forgotten_writer_shows() -> None:
    model = tiny_model("llama")
    writers = [w for w in find_writers(model) if w.component == MLP or w.layer != 2]
    assert residual_error(model, find_blocks(model), writers) > 0.1


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
        ("olmoe", {"num_experts": 4, "num_key_value_heads": 2}, r"olmoe is a mixture of experts .*mlp\.experts"),
        ("granitemoe", {"num_local_experts": 4, "num_key_value_heads": 2}, "granitemoe is a mixture of experts"),
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
    with pytest.raises(UnsupportedModel, match=r"vision_config.*gemma3, llava"):
        find_writers(model)


def test_a_partial_match_lists_what_is_missing() -> None:
    model = tiny_model("llama")
    del model.model.layers[2].mlp.down_proj
    with pytest.raises(UnsupportedModel, match=r"4 blocks, found 7 in 4; missing model\.layers\.2\.mlp\.down_proj"):
        find_writers(model)


def test_two_candidates_for_one_writer_are_doubtful() -> None:
    model = tiny_model("starcoder2", num_key_value_heads=2)
    model.model.layers[1].self_attn.out_proj = nn.Linear(48, 48)
    with pytest.raises(UnsupportedModel, match=rf"block 1 has 2 candidates for {ATTENTION}: .*o_proj.*out_proj"):
        find_writers(model)


def test_a_writer_in_half_precision_is_given_in_single() -> None:
    writer = find_writers(tiny_model("qwen2", dtype=torch.bfloat16))[0]
    assert writer.weight().dtype == torch.float32
