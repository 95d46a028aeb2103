"""Screening: what one forward pass a prompt says of an edit, without generation: its KL, exact, and how likely the edited
model is to begin the refusals that the base model gave.

Which words open a refusal is read off the base model's own answers, so nothing here knows a language or a wording. The
result ranks candidates and is never a refusal count: only answers that were read are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from bruno.engine.edits.build import TrialEdit
from bruno.engine.events import Emit, Fallback
from bruno.engine.model.generate import first_token_logprobs, generate
from bruno.engine.scoring.result import Glance
from bruno.engine.scoring.scores import Scorer
from bruno.engine.search.screening import Screening
from bruno.engine.search.space import Parameters, Space


class Screen:
    """Glances at trials, on a scorer's prompts.

    Made with the session off: it reads the base model's answers once. A prompt that the base model answers stands for
    the refusal that it gives most often.
    """

    def __init__(self, scorer: Scorer) -> None:
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
            ids[0] if ids and scorer.detector.shows(text) else None
            for text, ids in zip(answers.texts[0], answers.ids[0], strict=True)
        ]
        common = Counter(token for token in openings if token is not None).most_common(1)
        usual = common[0][0] if common else 0
        self.possible = bool(common)
        """False where the base model refuses nothing: there is no opening to look for."""
        self.openings = torch.tensor([usual if token is None else token for token in openings])

    def measure(self, rows: int = 0) -> torch.Tensor:
        """log p(opening) of the trials now written, [T, N], N the bad prompts."""
        scorer = self.scorer
        first = first_token_logprobs(scorer.loaded, scorer.bad, session=scorer.session, rows=rows)
        taken = self.openings.to(first.device).expand(len(first), -1)[..., None]
        return first.gather(-1, taken)[..., 0].double()

    def glance(self, edits: Sequence[TrialEdit]) -> list[Glance]:
        """One for each edit, in their order; as many at a time as the session was made for."""
        found: list[Glance] = []
        together = self.scorer.session.max_trials
        for start in range(0, len(edits), together):
            kls = self.scorer.divergences(edits[start : start + together])
            for kl, openings in zip(kls, self.measure(self.scorer.settings.loading.batch_size), strict=True):
                found.append(Glance(kl, openings.mean().item(), openings.exp().sum().item()))
        return found


def screening_for(scorer: Scorer, space: Space, candidates: int, emit: Emit) -> Screening | None:
    """How a search on these prompts screens; None where it is off (fewer than two candidates), or cannot be because the
    base model has no refusal to compare with, which is said."""
    if candidates < 2:
        return None
    screen = Screen(scorer)
    if not screen.possible:
        reason = "the untouched model does not show the behaviour on these prompts"
        emit(Fallback(method="screening", reason=reason, instead="trials as they are drawn"))
        return None

    def look(drawn: Sequence[Parameters]) -> list[Glance]:
        return screen.glance([space.edit(each) for each in drawn])

    return Screening(look, space, candidates, scorer.prompts)
