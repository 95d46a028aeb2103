"""Prompts to token ids: chat template, system text, no thinking, truncation from the middle, padding, length buckets.

Padding is always on the left, whatever the tokenizer says: the last position of every row is the one where the answer
begins, which is what captures, first-token scores and generation read. Pure but for the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import jinja2
import torch
from transformers import PreTrainedTokenizerBase

from bruno.errors import InputError

_ELLIPSIS = " ... "
_OPEN_THOUGHT = re.compile(r"<think>\s*$")


@dataclass(frozen=True)
class Batch:
    """Left-padded rows of B prompts.

    Attributes:
        indices: [B] long, which prompts they are.
        input_ids, attention_mask, position_ids: [B, S] long. Padding has mask 0 and position `start`.
    """

    indices: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


@dataclass(frozen=True)
class EncodedPrompts:
    """Token ids of N prompts, each ending where the answer's first token would come.

    Attributes:
        ids: one tuple of token ids for each prompt, none empty.
        pad_id: what fills the left of shorter rows; it is masked, so any valid id would do.
        truncated: how many prompts lost text from their middle.
    """

    ids: tuple[tuple[int, ...], ...]
    pad_id: int
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def shared_prefix(self) -> int:
        """Number of leading tokens that all prompts have in common, leaving each at least one of its own."""
        if not self.ids:
            return 0
        first, last = min(self.ids), max(self.ids)  # in lexicographic order these two share the least
        common = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
        return min(common, min(map(len, self.ids)) - 1)

    def batches(
        self, rows: int, device: torch.device | str = "cpu", *, start: int = 0, equal_lengths: bool = False
    ) -> Iterator[Batch]:
        """Batches of at most `rows` prompts of similar length, without their first `start` tokens.

        `equal_lengths` is for models whose answer depends on padding: no batch then has any.
        """
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        groups = [list(group) for _, group in groupby(order, key=lambda i: len(self.ids[i]) if equal_lengths else 0)]
        for group in groups:
            for begin in range(0, len(group), rows):
                yield self._batch(group[begin : begin + rows], start, device)

    def _batch(self, chosen: list[int], start: int, device: torch.device | str) -> Batch:
        width = max(len(self.ids[i]) for i in chosen) - start
        input_ids = torch.full((len(chosen), width), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, index in enumerate(chosen):
            own = self.ids[index][start:]
            input_ids[row, width - len(own) :] = torch.tensor(own)
            attention_mask[row, width - len(own) :] = 1
        position_ids = start + (attention_mask.cumsum(-1) - 1).clamp_min(0)
        return Batch(torch.tensor(chosen), input_ids.to(device), attention_mask.to(device), position_ids.to(device))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, system_prompt: str = "", max_tokens: int = 1024
) -> EncodedPrompts:
    """Render each prompt as a conversation of one turn that waits for the assistant, and tokenize it.

    Raises:
        InputError: a prompt is empty, or the template alone is longer than `max_tokens`.
    """
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    encoded, truncated = [], 0
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"Prompt {number} of {len(prompts)} is empty", fix="Remove it from the prompt file")
        ids, shortened = _fit(tokenizer, [*system, {"role": "user", "content": prompt}], max_tokens)
        encoded.append(ids)
        truncated += shortened
    return EncodedPrompts(tuple(encoded), pad_token(tokenizer), truncated)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, max_tokens: int = 1024
) -> tuple[int, ...]:
    """Token ids of a conversation of several turns (roles system, user, assistant), waiting for the assistant.

    Only the last user turn loses text when the whole is longer than `max_tokens`.
    """
    return _fit(tokenizer, list(messages), max_tokens)[0]


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token id to fill masked positions with."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if isinstance(token, int):
            return token
    return 0


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The conversation as text, up to where the assistant's answer begins.

    Templates without a system role get the system text at the head of the first user turn. Thinking templates are asked
    for no thinking; where the text ends inside a thought all the same, the thought is closed, so that the answer's first
    token is what is measured. A tokenizer without a template (a base model) gets the bare turns, one a line.
    """
    if not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages)
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    try:
        text = _apply(tokenizer, messages)
    except jinja2.TemplateError:
        if not system:
            raise
        text = ""
    if system and system not in text:
        first, *rest = messages[1:]
        text = _apply(tokenizer, [{**first, "content": f"{system}\n\n{first['content']}"}, *rest])
    return text.rstrip() + "\n\n</think>\n\n" if _OPEN_THOUGHT.search(text) else text


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, thinking=False
    )
    if not isinstance(text, str):
        raise InputError("The chat template did not render to text")
    return text


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[int, ...]:
    # A chat template writes its own special tokens; bare text gets the tokenizer's.
    return tuple(tokenizer(render(tokenizer, messages), add_special_tokens=not tokenizer.chat_template)["input_ids"])


def _fit(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_tokens: int
) -> tuple[tuple[int, ...], bool]:
    """Token ids of at most `max_tokens`, and whether the last user turn lost text from its middle for it."""
    ids = _tokens(tokenizer, messages)
    if len(ids) <= max_tokens:
        return ids, False
    turn = max(i for i, message in enumerate(messages) if message["role"] == "user")
    words = tokenizer(messages[turn]["content"], add_special_tokens=False)["input_ids"]
    keep = len(words) - (len(ids) - max_tokens)
    while keep > 0:
        keep -= len(_ELLIPSIS) // 2  # the ellipsis costs tokens of its own, and cut words may split differently
        head, tail = words[: max(0, keep - keep // 2)], words[len(words) - max(0, keep // 2) :]
        content = f"{tokenizer.decode(head)}{_ELLIPSIS}{tokenizer.decode(tail)}"
        ids = _tokens(tokenizer, [*messages[:turn], {**messages[turn], "content": content}, *messages[turn + 1 :]])
        if len(ids) <= max_tokens:
            return ids, True
    raise InputError(
        f"The conversation needs more than {max_tokens} tokens even without its last question",
        fix="Raise data.max_prompt_tokens, or shorten the system prompt",
    )
