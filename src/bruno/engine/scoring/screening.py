"""Screening: how likely the edited model is to begin the refusal that the base model gave, from one forward pass over each
prompt and the first tokens of that answer, without generation.

Which words open a refusal is read off the base model's own answers, so nothing here knows a language or a wording. The
result ranks candidates and is never a refusal count: only answers that were read are counted.
"""

from __future__ import annotations

from collections import Counter

import torch

from bruno.engine.model.generate import answer_logprobs, generate
from bruno.engine.scoring.scores import Scorer

TOKENS = 8
"""Tokens of the base model's refusals that are read."""


class Screen:
    """Log-probabilities of the base model's refusals on a scorer's bad prompts, for the trials now written to its session.

    Made with the session off: it reads the base model's answers once. A prompt that the base model answers stands for
    the refusal that it gives most often.
    """

    def __init__(self, scorer: Scorer, tokens: int = TOKENS) -> None:
        self.scorer = scorer
        scorer.session.off()
        answers = generate(
            scorer.loaded,
            scorer.bad,
            max_new_tokens=scorer.settings.scoring.max_new_tokens,
            settled=scorer.detector.settled,
            rows=scorer.settings.loading.batch_size,
        )
        openings = [
            tuple(ids[:tokens]) if scorer.detector.shows(text) else None
            for text, ids in zip(answers.texts[0], answers.ids[0], strict=True)
        ]
        common = Counter(opening for opening in openings if opening).most_common(1)
        self.openings = [list(opening or common[0][0]) for opening in openings] if common else []

    def measure(self, rows: int = 0) -> torch.Tensor:
        """log p of each opening up to its k-th token, [T, N, K], N the bad prompts; constant beyond an opening's end."""
        scorer = self.scorer
        logprobs, mask = answer_logprobs(scorer.loaded, scorer.bad, self.openings, session=scorer.session, rows=rows)
        ids = torch.zeros(mask.shape, dtype=torch.long, device=logprobs.device)
        for row, opening in enumerate(self.openings):
            ids[row, : len(opening)] = torch.tensor(opening)
        taken = logprobs.gather(-1, ids.expand(len(logprobs), -1, -1)[..., None])[..., 0].double()
        return torch.where(mask.to(taken.device), taken, 0.0).cumsum(-1)
