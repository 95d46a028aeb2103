"""Answers: the same tokens as the library's own generation, for every family, with and without what trials share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bruno.engine.edits.bake import bake_bias, bake_weight
from bruno.engine.edits.build import EditBatch, Kernel, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Fallback
from bruno.engine.model.architectures import ATTENTION, MLP
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.engine.model.generate import answer_logprobs, end_tokens, first_token_logprobs, generate, prepare
from bruno.engine.model.loading import LoadedModel
from tests.engine.edits.test_build import random_directions
from tests.engine.models import CONFIGS, VISION, loaded_model, tiny_model

PROMPTS = [f"question {i} " + "again " * (i % 4) for i in range(7)]
TOKENS = 10
WINDOWED = ("gemma2", "gemma3_text", "gemma3", "olmo3", "gpt_oss")
RECURRENT = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe")


def edits_for(loaded: LoadedModel, norm_mode: str = "column") -> EditBatch:
    """Three trials that begin at blocks 0, 2 and nowhere."""
    trials = [
        TrialEdit("global", 1.6, {ATTENTION: Kernel(1.2, 2, 0.3, 2), MLP: Kernel(0.8, 2.5, 0.2, 1)}),
        TrialEdit("per layer", None, {ATTENTION: Kernel(1.0, 3, 0.5, 1), MLP: Kernel(-0.2, 2, 1, 2)}),
        TrialEdit("per layer", None, {ATTENTION: Kernel(0.0, 2, 1, 4)}),
    ]
    directions = random_directions(loaded.layers, loaded.hidden_size)
    batch = build_edits(trials, directions, loaded.writers, norm_mode)  # type: ignore[arg-type]
    assert batch.first_layer == (0, 2, 4)
    return batch


def bake_into(loaded: LoadedModel, batch: EditBatch, trial: int) -> None:
    for index, edit in batch.edits.items():
        module = loaded.writers[index].module
        module.weight.copy_(bake_weight(module.weight, edit, trial))  # type: ignore[operator]
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(bake_bias(module.bias, edit, trial))  # type: ignore[operator]


@torch.inference_mode()
def plain_answers(loaded: LoadedModel, prompts: EncodedPrompts, tokens: int = TOKENS) -> list[list[int]]:
    """The library's own greedy answers, one prompt at a time, nothing padded."""
    answers = []
    for ids in prompts.ids:
        row = torch.tensor([ids])
        out = loaded.model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=tokens)
        answers.append(out[0, len(ids) :].tolist())
    return answers


@torch.inference_mode()
def plain_logprobs(loaded: LoadedModel, ids: tuple[int, ...], count: int = 1) -> torch.Tensor:
    return loaded.model(torch.tensor([ids])).logits[0, -count:].log_softmax(-1)


@pytest.mark.parametrize("kind", [*CONFIGS, *VISION])
def test_every_family_gives_the_tokens_and_scores_of_plain_generation(kind: str) -> None:
    """T trials x N prompts in shared batches, against the library's own generation of one prompt under the same hooks."""
    loaded = loaded_model(kind)
    prompts = encode(loaded.tokenizer, PROMPTS[1:4])
    events: list = []
    prepared = prepare(loaded, prompts, emit=events.append, rows=2)
    assert events == []
    assert prepared.reuse
    assert prepared.prefix == (0 if kind in (*WINDOWED, *RECURRENT) else len("<|user|>question "))
    answers = [[5 + i, 9, 11][: 1 + i % 3] for i in range(3)]
    assert generate(loaded, prepared, max_new_tokens=4).ids == [plain_answers(loaded, prompts, 4)]
    base, _ = answer_logprobs(loaded, prepared, answers)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(edits_for(loaded))
        together = generate(loaded, prepared, max_new_tokens=4, session=session, rows=5)
        first = first_token_logprobs(loaded, prepared, session=session)
        scores, mask = answer_logprobs(loaded, prepared, answers, session=session)
        for trial in (0, 1):
            session.rows_of(trial)
            assert together.ids[trial] == plain_answers(loaded, prompts, 4)
            for row, (ids, answer) in enumerate(zip(prompts.ids, answers, strict=True)):
                expected = plain_logprobs(loaded, (*ids, *answer[:-1]), len(answer))
                assert (first[trial, row] - expected[0]).abs().max() < 5e-5
                assert (scores[trial, row][mask[row]] - expected).abs().max() < 5e-5
    assert (first[0] - first[2]).abs().max() > 1e-3
    assert torch.equal(scores[2], base[0])  # the third trial edits nothing: KL(base, base) = 0 exactly


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_answers_under_hooks_are_those_of_the_baked_model(kind: str) -> None:
    loaded = loaded_model(kind)
    prompts = encode(loaded.tokenizer, PROMPTS)
    prepared = prepare(loaded, prompts, emit=lambda _: None, rows=3)
    batch = edits_for(loaded)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(batch)
        together = generate(loaded, prepared, max_new_tokens=TOKENS, session=session, rows=9)
    for trial in range(3):
        baked = loaded_model(kind)
        bake_into(baked, batch, trial)
        assert together.ids[trial] == plain_answers(baked, prompts)
    assert together.ids[0] != together.ids[2]


def test_scores_of_a_trial_that_edits_nothing_are_the_base_models_exactly() -> None:
    loaded = loaded_model("llama")
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None)
    base = first_token_logprobs(loaded, prepared)
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        assert torch.equal(first_token_logprobs(loaded, prepared, session=session)[2], base[0])
        session.off()
        assert torch.equal(first_token_logprobs(loaded, prepared, session=session), base)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_how_many_rows_run_together_changes_no_token(rows: int) -> None:
    loaded = loaded_model("qwen2")
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None)
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        reference = generate(loaded, prepared, max_new_tokens=TOKENS, session=session)
        assert generate(loaded, prepared, max_new_tokens=TOKENS, session=session, rows=rows).ids == reference.ids
        scores = first_token_logprobs(loaded, prepared, session=session)
        assert torch.allclose(scores, first_token_logprobs(loaded, prepared, session=session, rows=rows), atol=1e-5)


def test_rows_leave_when_they_end_or_are_settled_and_the_others_go_on() -> None:
    loaded = loaded_model("llama")
    prompts = encode(loaded.tokenizer, PROMPTS)
    prepared = prepare(loaded, prompts, emit=lambda _: None)
    plain = generate(loaded, prepared, max_new_tokens=TOKENS)
    ending = plain.ids[0][3][4]
    loaded.model.generation_config.eos_token_id = [2, ending]
    assert end_tokens(loaded) == {2, ending}
    ended = generate(loaded, prepared, max_new_tokens=TOKENS)
    for answer, whole, stopped in zip(ended.ids[0], plain.ids[0], ended.ended[0], strict=True):
        cut = whole.index(ending) + 1 if ending in whole else TOKENS
        assert answer == whole[:cut]
        assert stopped == (ending in whole)
    assert ended.ended[0][3]
    assert ended.tokens == sum(map(len, ended.ids[0])) < plain.tokens
    loaded.model.generation_config.eos_token_id = 2
    lengths = {text: 3 + i for i, text in enumerate(plain.texts[0])}
    seen: list[str] = []

    def settled(text: str) -> bool:
        seen.append(text)
        return any(whole.startswith(text) and len(text) >= lengths[whole] for whole in lengths)

    early = generate(loaded, prepared, max_new_tokens=TOKENS, settled=settled)
    assert early.tokens < plain.tokens
    assert all(w[: len(a)] == a for a, w in zip(early.ids[0], plain.ids[0], strict=True))
    assert not any(early.ended[0])
    assert seen


def test_a_model_that_cannot_be_entered_in_the_middle_is_run_whole_and_says_so() -> None:
    loaded = loaded_model("llama")
    remembered: list[torch.Tensor] = []
    first, last = loaded.model.model.layers[0], loaded.model.model.layers[3]
    # a block that reads what another kept, as in models whose layers share keys: nothing that `prefill` can know
    first.register_forward_hook(lambda _m, _a, output: remembered.append(output.detach()))
    last.register_forward_hook(lambda _m, _a, output: output + 0.5 * remembered[-1][:, -output.shape[1] :] ** 2)
    prompts = encode(loaded.tokenizer, PROMPTS)
    events: list = []
    prepared = prepare(loaded, prompts, emit=events.append)
    assert [type(event) for event in events] == [Fallback]
    assert not prepared.reuse
    assert prepared.cache == "blocks"
    assert generate(loaded, prepared, max_new_tokens=TOKENS).ids == [plain_answers(loaded, prompts)]


def unedited(kind: str, **changes: Any) -> LoadedModel:
    """A model outside the table of families, which can be run but not edited."""
    return replace(loaded_model("llama"), model=tiny_model(kind, **changes), writers=[])


MAMBA_HEADS = {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("falcon_h1", {"num_key_value_heads": 2, **MAMBA_HEADS, "mamba_chunk_size": 16}, "its hybrid blocks keep more"),
        (
            "lfm2",
            {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"] * 2},
            "its conv blocks keep more",
        ),
        ("minimax", {"num_key_value_heads": 2, "num_local_experts": 2, "block_size": 16}, "does not run with it"),
    ],
)
def test_a_cache_that_cannot_be_taken_apart_is_left_to_the_model_and_said(
    kind: str, changes: dict, reason: str
) -> None:
    loaded = unedited(kind, **changes)
    prompts = encode(loaded.tokenizer, PROMPTS[:4])
    events: list = []
    prepared = prepare(loaded, prompts, emit=events.append, rows=3)
    assert prepared.cache == "own"
    assert not prepared.reuse
    assert reason in events[0].reason
    assert generate(loaded, prepared, max_new_tokens=5).ids == [plain_answers(loaded, prompts, 5)]


def test_a_model_whose_cache_is_wrong_is_run_without_and_says_so() -> None:
    loaded = unedited("mamba", state_size=4)
    prompts = encode(loaded.tokenizer, PROMPTS[:4])
    events: list = []
    prepared = prepare(loaded, prompts, emit=events.append)
    assert prepared.cache == "none"
    assert events[-1].instead == "no cache: every token computes its whole row again"
    assert generate(loaded, prepared, max_new_tokens=4).ids == [plain_answers(loaded, prompts, 4)]


@pytest.mark.parametrize("pads", [True, False])
def test_every_way_of_keeping_positions_gives_the_same_answers(pads: bool) -> None:
    loaded = loaded_model("qwen3_5_text")
    prompts = encode(loaded.tokenizer, PROMPTS)
    shared = prepare(loaded, prompts, emit=lambda _: None)
    events: list = []
    own = (
        prepare(replace(loaded, pads=pads), prompts, emit=events.append)
        if not pads
        else replace(prepare(loaded, prompts, emit=events.append), reuse=False, cache="own")
    )
    none = replace(own, cache="none")
    assert own.cache == "own"
    assert [event.reason for event in events] == ([] if pads else ["its rows cannot be padded"])
    assert all((item.batch.attention_mask.min() == 1) or pads for item in own.batches)
    answers = [[5 + i, 9, 11][: 1 + i % 3] for i in range(len(PROMPTS))]
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        expected = generate(loaded, shared, max_new_tokens=5, session=session)
        scores, mask = answer_logprobs(loaded, shared, answers, session=session)
        for prepared in (own, none):
            assert generate(loaded, prepared, max_new_tokens=5, session=session).ids == expected.ids
            others, _ = answer_logprobs(loaded, prepared, answers, session=session)
            assert (others[:, mask] - scores[:, mask]).abs().max() < 5e-5


def test_no_prompts_give_no_answers() -> None:
    loaded = loaded_model("llama")
    prepared = prepare(loaded, EncodedPrompts((), 0), emit=lambda _: None)
    assert generate(loaded, prepared, max_new_tokens=3).ids == [[]]
    assert first_token_logprobs(loaded, prepared).shape[:2] == (1, 0)


def test_one_prompt_and_equal_prompts_work() -> None:
    loaded = loaded_model("llama")
    for texts in (["alone"], ["same", "same"]):
        prompts = encode(loaded.tokenizer, texts)
        prepared = prepare(loaded, prompts, emit=lambda _: None)
        assert generate(loaded, prepared, max_new_tokens=4).ids == [plain_answers(loaded, prompts, 4)]


def test_half_precision_runs_and_reuses() -> None:
    loaded = loaded_model("llama", dtype=torch.bfloat16)
    events: list = []
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=events.append)
    assert prepared.reuse, events
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(edits_for(loaded))
        scores = first_token_logprobs(loaded, prepared, session=session)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
