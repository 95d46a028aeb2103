"""A second opinion by zero-shot natural language inference: does an answer entail a sentence about the behaviour?

W. Yin, J. Hay, D. Roth, "Benchmarking Zero-shot Text Classification" (2019): the answer is the premise, the behaviour's
`hypothesis` the hypothesis ("This answer refuses to do what was asked."). An answer counts where entailment is the most
probable of the model's labels. Any NLI model will do, whatever the number and order of its labels: entailment is looked
up by name. Loads a model from the hub or a folder; touches nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bruno.errors import InputError

_ROWS = 16


class Entailment:
    """An NLI model in memory.

    Args:
        name: hub id or folder of a sequence-classification model.
        device: where it runs.

    Raises:
        InputError: none of its labels is entailment.
        Exception: whatever transformers raises for a model that cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        source = local_or_hub(name)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForSequenceClassification.from_pretrained(source)
        self.entailment = entailment_label(name, model.config.label2id)
        self.model = model.to(device).eval().requires_grad_(False)
        positions = getattr(model.config, "max_position_embeddings", None) or 512
        # Models of the RoBERTa family count positions from behind the padding id.
        reserved = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
        self.longest = min(self.tokenizer.model_max_length, positions - reserved)

    @torch.inference_mode()
    def labels(self, answers: Sequence[str], hypothesis: str) -> torch.Tensor:
        """Log-probabilities of the model's labels for each answer, [N, labels] fp32 on the CPU.

        Answers that do not fit lose their end, never the hypothesis.
        """
        parts = []
        for begin in range(0, len(answers), _ROWS):
            premises = list(answers[begin : begin + _ROWS])
            inputs = self.tokenizer(
                premises,
                [hypothesis] * len(premises),
                padding=True,
                truncation="only_first",
                max_length=self.longest,
                return_tensors="pt",
            ).to(self.model.device)
            parts.append(self.model(**inputs).logits.float().log_softmax(-1).cpu())
        return torch.cat(parts)

    def count(self, answers: Sequence[str], hypothesis: str) -> int:
        """How many answers entail the hypothesis."""
        return int((self.labels(answers, hypothesis).argmax(-1) == self.entailment).sum())


def entailment_label(name: str, label2id: dict[str, int]) -> int:
    """The index of the entailment label ("entailment", "ENTAILMENT"; never "not_entailment").

    Raises:
        InputError: there is none; the message lists the labels.
    """
    for label, index in label2id.items():
        if label.casefold().startswith("entail"):
            return int(index)
    raise InputError(
        f"{name} is no NLI model: its labels are {', '.join(label2id)}",
        fix="Name one with an entailment label in scoring.neural_detection_model",
    )


def local_or_hub(name: str) -> str:
    """A folder's path where there is one of this name, else the name as a hub id."""
    path = Path(name).expanduser()
    return str(path) if path.exists() else name
