"""Greedy answers and first-token log-probabilities for T trials x N prompts, computing what trials share only once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bruno.engine.chat_format import EncodedPrompts
    from bruno.engine.loading import Emit, LoadedModel
    from bruno.engine.session import EditSession


@dataclass(frozen=True)
class Generation:
    """Answers by trial, then prompt (T = 1 without a session).

    Attributes:
        texts: [T][N], special tokens left out.
        ids: [T][N], generated token ids; the end-of-text token, where it came, is the last.
        ended: [T][N], True where the model ended its answer (False: length limit, or settled early).
        tokens: number of tokens generated in all.
    """

    texts: list[list[str]]
    ids: list[list[list[int]]]
    ended: list[list[bool]]
    tokens: int


class PreparedPrompts:
    """Prompts with what the base model computes for them once and every trial reuses. Made by `prepare`."""

    prompts: EncodedPrompts


def prepare(loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0) -> PreparedPrompts:
    """Do the base model's share of the work once. Call outside a session, or with the session off."""
    raise NotImplementedError


def generate(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    *,
    max_new_tokens: int,
    session: EditSession | None = None,
    settled: Callable[[str], bool] | None = None,
    rows: int = 0,
) -> Generation:
    """Greedy answers to every prompt, for every trial of the session (of the base model without one, or when it is off).

    Same tokens as `model.generate(do_sample=False)`. A row leaves the batch when its answer ended or `settled(text so far)` is true.

    Args:
        rows: most rows (trials x prompts) decoded together; 0 lets the engine choose.

    Raises:
        torch.OutOfMemoryError: the caller halves `rows` and tries again.
    """
    raise NotImplementedError


def first_token_logprobs(
    loaded: LoadedModel, prepared: PreparedPrompts, *, session: EditSession | None = None, rows: int = 0
) -> torch.Tensor:
    """log p(first answer token), [T, N, V] fp32 on the model's device."""
    raise NotImplementedError


def answer_logprobs(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    answers: list[list[int]],
    *,
    session: EditSession | None = None,
    rows: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced log-probabilities over given answers of at most K tokens each.

    Returns:
        log p [T, N, K, V] fp32 (position j predicts answer token j) and a mask [N, K], False beyond each answer's end.
    """
    raise NotImplementedError
