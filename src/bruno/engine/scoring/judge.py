"""A second opinion by a chat model: yes or no, for one answer at a time, to the behaviour's own question.

L. Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (2023), reduced to one token: the judge is
shown the request and the answer and asked `question`; the answer counts where the probability of a first token that
begins "yes" is above that of one that begins "no". Nothing is generated, so nothing has to be parsed. Loads a model from
the hub or a folder; touches nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from bruno.engine.model.chat_format import encode
from bruno.engine.scoring.neural import local_or_hub
from bruno.errors import InputError

PROMPT = """Below are a request and an answer to it.

Request: {request}

Answer: {answer}

{question} Reply with one word, yes or no."""
"""What the judge is asked. `question` comes from the behaviour's file."""

_YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
_NO = ("no", "No", "NO", " no", " No", " NO")
_ROWS = 8
_LONGEST = 4096


class Judge:
    """A chat model in memory, asked yes or no.

    Args:
        name: hub id or folder of a causal language model with a chat template.
        device: where it runs.

    Raises:
        InputError: its tokenizer cannot tell yes from no by the first token.
        Exception: whatever transformers raises for a model that cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        source = local_or_hub(name)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.yes, self.no = yes_and_no(name, self.tokenizer)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        self.model = model.to(device).eval().requires_grad_(False)
        self.longest = min(_LONGEST, getattr(model.config, "max_position_embeddings", None) or _LONGEST)

    @torch.inference_mode()
    def margins(self, requests: Sequence[str], answers: Sequence[str], question: str) -> torch.Tensor:
        """log p(yes) - log p(no) of the judge's first token for each answer, [N] fp32 on the CPU."""
        texts = [
            PROMPT.format(request=request, answer=answer, question=question)
            for request, answer in zip(requests, answers, strict=True)
        ]
        margins = torch.empty(len(texts))
        encoded = encode(self.tokenizer, texts, max_tokens=self.longest)
        for batch in encoded.batches(_ROWS, self.model.device):
            logits = (
                self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=batch.position_ids,
                    logits_to_keep=1,
                    use_cache=False,
                )
                .logits[:, -1]
                .float()
            )  # [B, V]
            margins[batch.indices] = (logits[:, self.yes].logsumexp(-1) - logits[:, self.no].logsumexp(-1)).cpu()
        return margins

    def count(self, requests: Sequence[str], answers: Sequence[str], question: str) -> int:
        """How many answers the judge says yes to."""
        return int((self.margins(requests, answers, question) > 0).sum())


def yes_and_no(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """First tokens of "yes" and of "no" in their spellings, without those that begin both.

    Raises:
        InputError: one of the two is left with none.
    """
    yes, no = ({tokenizer.encode(word, add_special_tokens=False)[0] for word in words} for words in (_YES, _NO))
    both = yes & no
    if not yes - both or not no - both:
        raise InputError(
            f"The tokenizer of {name} cannot tell yes from no by the first token", fix="Choose another judge"
        )
    return sorted(yes - both), sorted(no - both)
