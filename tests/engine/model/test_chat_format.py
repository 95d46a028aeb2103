"""Conversations as token ids: templates of every habit, truncation, padding on the left."""

from __future__ import annotations

import pytest
import torch

from bruno.engine.model.chat_format import encode, encode_conversation, render
from bruno.errors import InputError
from tests.engine.models import CHAT_TEMPLATE, tiny_tokenizer

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[model]"
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
    "[model]"
)
THINKS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[model]<think>\n"
CAN_BE_ASKED = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[model]"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (CHAT_TEMPLATE, [SYSTEM, USER], "<|system|>Be brief.\n<|user|>Hi?\n<|assistant|>"),
        (CHAT_TEMPLATE, [USER], "<|user|>Hi?\n<|assistant|>"),
        (NO_SYSTEM, [SYSTEM, USER], "[user]Be brief.\n\nHi?[model]"),
        (IGNORES_SYSTEM, [SYSTEM, USER], "[user]Be brief.\n\nHi?[model]"),
        (THINKS, [USER], "[user]Hi?[model]<think>\n\n</think>\n\n"),
        (CAN_BE_ASKED, [USER], "[user]Hi?[model]<think>\n\n</think>\n\n"),
        (None, [SYSTEM, USER], "Be brief.\nHi?"),
    ],
)
def test_templates_of_every_habit(template: str | None, messages: list[dict[str, str]], expected: str) -> None:
    assert render(tiny_tokenizer(template), messages) == expected


def test_truncation_takes_from_the_middle_and_never_the_header() -> None:
    tokenizer = tiny_tokenizer()
    prompt = "START " + "middle " * 100 + "END"
    encoded = encode(tokenizer, [prompt, "short"], system_prompt="Be brief.", max_tokens=80)
    text = tokenizer.decode(encoded.ids[0])
    assert encoded.truncated == 1
    assert 60 < len(encoded.ids[0]) <= 80
    assert text.startswith("<|system|>Be brief.\n<|user|>START ")
    assert " ... " in text
    assert text.endswith("END\n<|assistant|>")


def test_what_cannot_be_fitted_or_is_empty_is_refused() -> None:
    with pytest.raises(InputError, match="more than 30 tokens"):
        encode(tiny_tokenizer(), ["question"], system_prompt="long " * 20, max_tokens=30)
    with pytest.raises(InputError, match="Prompt 2 of 2 is empty"):
        encode(tiny_tokenizer(), ["question", " \n"])


def test_of_a_conversation_the_last_question_is_shortened() -> None:
    tokenizer = tiny_tokenizer()
    turns = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "why " * 60}]
    text = tokenizer.decode(encode_conversation(tokenizer, turns, max_tokens=100))
    assert text.startswith("<|user|>Hi?\n<|assistant|>Hello.\n<|user|>why ")
    assert text.endswith("\n<|assistant|>")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_left_whatever_the_tokenizer_says(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    encoded = encode(tokenizer, ["a long question, this one", "b", "middling"])
    batches = list(encoded.batches(2))
    assert [batch.indices.tolist() for batch in batches] == [[1, 2], [0]]  # by length
    for batch in batches:
        assert batch.attention_mask[:, -1].all()
        for row, index in enumerate(batch.indices.tolist()):
            own = batch.attention_mask[row].bool()
            assert tuple(batch.input_ids[row][own].tolist()) == encoded.ids[index]
            assert batch.position_ids[row][own].tolist() == list(range(len(encoded.ids[index])))


def test_the_shared_prefix_leaves_every_prompt_something() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(tokenizer, ["abc", "abd", "xyz"])
    assert encoded.shared_prefix() == len("<|user|>")
    same = encode(tokenizer, ["abc", "abc"])
    assert same.shared_prefix() == len(same.ids[0]) - 1
    (batch,) = encoded.batches(3, start=encoded.shared_prefix())
    assert tokenizer.decode(batch.input_ids[0]) == "abc\n<|assistant|>"
    assert batch.position_ids[0, 0] == encoded.shared_prefix()
    assert torch.equal(batch.attention_mask, torch.ones_like(batch.attention_mask))
    assert encode(tokenizer, []).shared_prefix() == 0
