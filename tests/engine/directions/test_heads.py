"""Head attribution: sums to what the attention writes along the direction, also with grouped queries and post-norms."""

from __future__ import annotations

import math

import pytest
import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.directions.heads import attribute_heads, choose_heads
from bruno.engine.model.architectures import ATTENTION
from bruno.engine.model.chat_format import encode
from bruno.errors import InputError
from tests.engine.models import loaded_model

BAD = [f"bad {i} " + "again " * (i % 3) for i in range(7)]
GOOD = [f"good {i}" for i in range(5)]


def setting(kind: str):
    loaded = loaded_model(kind)
    prompts = [encode(loaded.tokenizer, texts) for texts in (BAD, GOOD)]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(loaded.layers + 1, 1, loaded.hidden_size, generator=generator)
    directions = DirectionSet(torch.nn.functional.normalize(vectors, dim=-1), torch.ones(1), ())
    return loaded, prompts, directions


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt_neox", "qwen3_moe"])
def test_heads_add_up_to_what_the_projection_writes_along_the_direction(kind: str) -> None:
    loaded, prompts, directions = setting(kind)
    attribution = attribute_heads(loaded, *prompts, directions, emit=lambda _: None, rows=3)
    assert attribution.shape == (loaded.layers, loaded.model.config.num_attention_heads)
    for writer in [w for w in loaded.writers if w.component == ATTENTION]:
        v = directions.vectors[writer.layer + 1, 0]
        if writer.post_norm_gain is not None:
            v = torch.nn.functional.normalize(v * writer.post_norm_gain, dim=0)
        kept = []
        bias = getattr(writer.module, "bias", None)
        handle = writer.module.register_forward_hook(
            lambda _m, _a, y, b=bias, k=kept, u=v: k.append((y[:, -1] - (0 if b is None else b)) @ u)
        )
        means = []
        for encoded in prompts:
            kept.clear()
            with torch.inference_mode():
                for batch in encoded.batches(1):  # one by one: no padding to think of
                    loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            means.append(torch.cat(kept).mean())
        handle.remove()
        assert float(attribution[writer.layer].sum()) == pytest.approx(float(means[0] - means[1]), abs=1e-4)


def test_only_the_head_that_writes_the_direction_is_attributed() -> None:
    loaded, prompts, directions = setting("llama")
    size = loaded.writers[0].weight_shape[1] // 4
    for writer in loaded.writers:
        if writer.component == ATTENTION:  # every head but the third writes nothing along v
            v = directions.vectors[writer.layer + 1, 0]
            weight = writer.module.weight
            for head in (0, 1, 3):
                block = weight[:, head * size : (head + 1) * size]
                block -= v[:, None] * (v @ block)
    attribution = attribute_heads(loaded, *prompts, directions, emit=lambda _: None)
    assert attribution[:, [0, 1, 3]].abs().max() < 1e-5
    assert attribution[:, 2].abs().min() > 1e-4


def test_hooks_are_gone_afterwards() -> None:
    loaded, prompts, directions = setting("llama")
    attribute_heads(loaded, *prompts, directions, emit=lambda _: None)
    assert not any(writer.module._forward_pre_hooks for writer in loaded.writers)


def test_blocks_with_another_number_of_heads_have_their_own() -> None:
    loaded, prompts, directions = setting("qwen3_next")
    attribution = attribute_heads(loaded, *prompts, directions, emit=lambda _: None)
    for writer in [w for w in loaded.writers if w.component == ATTENTION]:
        assert attribution[writer.layer].isnan().sum() == attribution.shape[1] - writer.heads


def test_a_model_without_heads_is_one_line() -> None:
    loaded, prompts, directions = setting("llama")
    loaded.writers[:] = [writer for writer in loaded.writers if writer.component != ATTENTION]
    with pytest.raises(InputError, match="no attention heads"):
        attribute_heads(loaded, *prompts, directions, emit=lambda _: None)


ATTRIBUTION = torch.tensor([[0.1, 0.9, -0.5], [0.3, 0.2, math.nan], [0.0, 0.0, 0.8]])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.01, {0: (1,)}),
        (0.25, {0: (1,), 2: (2,)}),
        (0.5, {0: (1,), 1: (0, 1), 2: (2,)}),
        (1.0, {0: (0, 1, 2), 1: (0, 1), 2: (0, 1, 2)}),
    ],
)
def test_the_share_of_heads_that_write_most_is_chosen(share, expected) -> None:
    assert choose_heads(ATTRIBUTION, share) == expected
