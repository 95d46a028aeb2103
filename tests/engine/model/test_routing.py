"""Routing: what is counted is what the experts were really given; a collapse is a number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.edits.session import EditSession
from bruno.engine.events import OutOfMemory
from bruno.engine.model.architectures import find_mixtures
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.routing import busiest, decision, evenness, expert_frequencies, routing_health
from bruno.errors import BrunoError
from tests.engine.model.test_generate import edits_for
from tests.engine.models import loaded_model

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "qwen3_5_moe_text"]
PROMPTS = [f"question {i} " + "again " * (i % 4) for i in range(5)]


@torch.inference_mode()
def given_to_experts(loaded: LoadedModel, prompts: EncodedPrompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Choices and (normalised) weights by block and expert, as the experts' own module receives them, nothing padded."""
    chosen = torch.zeros(loaded.layers, 4, dtype=torch.float64)
    weight = torch.zeros(loaded.layers, 4, dtype=torch.float64)

    def before(layer: int):
        def hook(_module, args) -> None:
            _, index, weights = args
            for token, row in zip(index.tolist(), weights.tolist(), strict=True):
                for expert, value in zip(token, row, strict=True):
                    chosen[layer, expert] += 1
                    weight[layer, expert] += value / sum(row)

        return hook

    mixtures = find_mixtures(loaded.writers)
    handles = [m.module.experts.register_forward_pre_hook(before(m.layer)) for m in mixtures]  # type: ignore[union-attr]
    for ids in prompts.ids:
        loaded.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return chosen, weight


@pytest.mark.parametrize("kind", MIXTURES)
def test_what_is_counted_is_what_the_experts_were_given(kind: str) -> None:
    loaded = loaded_model(kind)
    prompts = encode(loaded.tokenizer, PROMPTS)
    frequencies = expert_frequencies(loaded, prompts, emit=lambda _: None, rows=3)
    chosen, weight = given_to_experts(loaded, prompts)
    assert torch.allclose(frequencies, chosen / chosen.sum(1, keepdim=True).clamp_min(1))
    assert torch.equal(frequencies, expert_frequencies(loaded, prompts, emit=lambda _: None, rows=1))
    expected = min(evenness(row) for row in weight if row.sum())
    assert routing_health(loaded, prompts, emit=lambda _: None, rows=3) == pytest.approx([expected], abs=1e-4)


def test_health_is_measured_for_each_trial_with_its_edit_active() -> None:
    loaded = loaded_model("qwen3_moe")
    prompts = encode(loaded.tokenizer, PROMPTS)
    base = routing_health(loaded, prompts, emit=lambda _: None)
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        health = routing_health(loaded, prompts, emit=lambda _: None, session=session)
        session.rows_of(0)
        _, weight = given_to_experts(loaded, prompts)
        session.off()
        assert routing_health(loaded, prompts, emit=lambda _: None, session=session) == base
    assert len(health) == 3
    assert health[0] == pytest.approx(min(evenness(row) for row in weight), abs=1e-4)
    assert health[0] != base[0]
    assert health[2] == base[0]  # the third trial edits nothing


def test_a_collapsed_router_shows_and_the_worst_block_counts() -> None:
    loaded = loaded_model("qwen3_moe")
    prompts = encode(loaded.tokenizer, PROMPTS)
    before = routing_health(loaded, prompts, emit=lambda _: None)[0]
    find_mixtures(loaded.writers)[2].router.weight.zero_()  # type: ignore[operator]
    # equal scores: always the same two of four experts, half each
    collapsed = routing_health(loaded, prompts, emit=lambda _: None)
    assert collapsed == pytest.approx([math.log(2) / math.log(4)])
    assert collapsed[0] < before
    assert busiest(expert_frequencies(loaded, prompts, emit=lambda _: None), 1.0)[2] in [(0, 1), (2, 3), (0, 2), (1, 3)]


def test_a_model_without_experts_is_healthy_and_has_nothing_to_count() -> None:
    loaded = loaded_model("llama")
    prompts = encode(loaded.tokenizer, PROMPTS)
    assert routing_health(loaded, prompts, emit=lambda _: None) == [1.0]
    with pytest.raises(BrunoError, match="llama has no experts"):
        expert_frequencies(loaded, prompts, emit=lambda _: None)


def test_out_of_memory_halves_the_batch_and_counts_every_token_once() -> None:
    loaded = loaded_model("mixtral")
    prompts = encode(loaded.tokenizer, PROMPTS)
    expected = expert_frequencies(loaded, prompts, emit=lambda _: None)

    def no_more_than_two(_module, _args, kwargs) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.base_model.register_forward_pre_hook(no_more_than_two, with_kwargs=True)
    events: list = []
    assert torch.equal(expert_frequencies(loaded, prompts, emit=events.append, rows=5), expected)
    assert [type(event) for event in events] == [OutOfMemory]


@pytest.mark.parametrize(
    ("row", "share", "expected"),
    [
        ([0.1, 0.6, 0.3, 0.0], 1.0, (0, 1, 2)),
        ([0.1, 0.6, 0.3, 0.0], 0.9, (1, 2)),
        ([0.1, 0.6, 0.3, 0.0], 0.6, (1,)),
        ([0.1, 0.6, 0.3, 0.0], 0.01, (1,)),
        ([0.25, 0.25, 0.25, 0.25], 0.5, (0, 1)),
        ([1 / 3, 1 / 3, 1 / 3, 0.0], 1.0, (0, 1, 2)),
    ],
)
def test_the_busiest_experts_are_the_fewest_that_serve_the_share(
    row: list[float], share: float, expected: tuple[int, ...]
) -> None:
    frequencies = torch.tensor([[0.0] * 4, row], dtype=torch.float64)
    assert busiest(frequencies, share) == {1: expected}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any), st.floats(0.01, 1))
def test_no_smaller_set_of_experts_serves_the_share(counts: list[int], share: float) -> None:
    row = torch.tensor(counts, dtype=torch.float64)
    chosen = busiest((row / row.sum())[None], share)[0]
    assert sum(counts[e] for e in chosen) >= (share - 1e-6) * sum(counts)
    assert sum(sorted(counts, reverse=True)[: len(chosen) - 1]) < (share + 1e-6) * sum(counts)


def test_routers_of_older_code_are_read_and_mute_ones_refused() -> None:
    index, weights = torch.tensor([[0, 2], [1, 0]]), torch.rand(2, 2)
    for output in ((index, weights), (torch.rand(2, 4), weights, index), (index, weights, None)):
        assert all(torch.equal(a, b) for a, b in zip(decision(output, "gate"), (index, weights), strict=True))
    with pytest.raises(BrunoError, match="router gate does not say which"):
        decision(torch.rand(2, 4), "gate")
