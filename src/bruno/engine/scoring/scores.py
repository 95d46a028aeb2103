"""Score edits: raw refusal counts, KL divergence from the untouched model, and intervals for counts.

Reads the model through `generate.py`; keeps the base model's next-token distributions, which every trial is compared
with. Nothing here knows how trials are proposed or recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.build import EditRules, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit
from bruno.engine.model.chat_format import encode
from bruno.engine.model.generate import (
    Generation,
    PreparedPrompts,
    answer_logprobs,
    first_token_logprobs,
    generate,
    prepare,
)
from bruno.engine.model.loading import LoadedModel
from bruno.engine.scoring.detectors import Detector
from bruno.engine.scoring.result import Known, Scores, Stopped, better_trial
from bruno.settings.engine import EngineSettings


def kl_divergence(base: torch.Tensor, edited: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """KL(base || edited) in nats, mean over distributions; 0 exactly when they are equal.

    Args:
        base: log-probabilities, [..., V], V the vocabulary.
        edited: log-probabilities, the same shape.
        mask: [...], True where a distribution counts; all do when None.

    Summed in fp64, some distributions at a time. A token the base gives no probability adds nothing.
    """
    base, edited = base.flatten(0, -2), edited.flatten(0, -2)
    divergences = []
    for first, second in zip(base.split(32), edited.split(32), strict=True):
        p, q = first.double(), second.double()
        divergences.append(torch.where(first.isneginf(), 0.0, p.exp() * (p - q)).sum(-1))
    total = torch.cat(divergences)
    return (total if mask is None else total[mask.flatten().to(total.device)]).mean().item()


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share, as shares of 1 (E. B. Wilson, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


class Ordinary(NamedTuple):
    """Good prompts before and after an edit: how many are refused, and the KL of the first token on those that the
    untouched model answers (None where it refuses none, which is the KL of all, or every one)."""

    before: int
    after: int
    kl_answered: float | None


class Scorer:
    """Scores batches of trials on one set of bad and one of good prompts.

    Made with the session off: it does the base model's share of the work (prompt prefixes, base distributions) once.

    Args:
        loaded: the model.
        session: the hooks that trials are written to.
        directions: what trials remove.
        bad: prompts that show the behaviour; answers to them are read for refusals.
        good: ordinary prompts; the KL divergence is measured on them.
        detector: tells the answers that show the behaviour from the others.
        settings: `scoring`, `data`, `edit` and `loading` are read.
        emit: hears about fallbacks.
        rules: what is the same for every trial of the run; the settings' norm mode alone when None.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        session: EditSession,
        directions: DirectionSet,
        *,
        bad: Sequence[str],
        good: Sequence[str],
        detector: Detector,
        settings: EngineSettings,
        emit: Emit,
        rules: EditRules | None = None,
    ) -> None:
        self.loaded, self.session, self.directions = loaded, session, directions
        self.detector, self.settings, self.emit = detector, settings, emit
        self.rules = rules or EditRules(norm_mode=settings.edit.norm_mode)
        session.off()
        rows = settings.loading.batch_size
        self.bad = prepare(loaded, self._encode(bad), emit=emit, rows=rows)
        several = settings.scoring.kl_divergence_tokens > 1
        self.good = prepare(loaded, self._encode(good), emit=emit, rows=rows, answers=several)
        self.base = first_token_logprobs(loaded, self.good, rows=rows)[0]  # [N, V]
        self.base_ids: list[list[int]] | None = None
        if several:
            self.base_ids = generate(
                loaded, self.good, max_new_tokens=settings.scoring.kl_divergence_tokens, rows=rows
            ).ids[0]
            self.base_answers, self.base_mask = answer_logprobs(loaded, self.good, self.base_ids, rows=rows)

    @property
    def prompts(self) -> int:
        """How many bad prompts each trial answers."""
        return len(self.bad.prompts)

    def base_refusals(self) -> int:
        """Raw refusal count of the untouched model on the bad prompts."""
        self.session.off()
        return self._refusals(self.bad, None, 0)[0]

    def ordinary(self, edit: TrialEdit) -> Ordinary:
        """What an edit does to good prompts: it should not teach refusing, nor change what is no refusal."""
        self.session.off()
        good = self.good
        if not good.answers:
            good = prepare(self.loaded, good.prompts, emit=self.emit, rows=self.settings.loading.batch_size)
        refused = [bool(self.detector.count([text])) for text in self._generate(good, None, 0, early=True).texts[0]]
        self._write([edit])
        after = self._refusals(good, self.session, 0)[0]
        kl = None
        if 0 < sum(refused) < len(refused):
            edited = first_token_logprobs(
                self.loaded, self.good, session=self.session, rows=self.settings.loading.batch_size
            )[0]
            kl = kl_divergence(self.base, edited, ~torch.tensor(refused))
        return Ordinary(sum(refused), after, kl)

    def answers(self, edit: TrialEdit | None, prompts: Sequence[str] | None = None) -> list[str]:
        """Whole answers, none cut short where its verdict is settled.

        Args:
            edit: what is active; None for the untouched model.
            prompts: other prompts than the bad ones.
        """
        self.session.off()
        prepared = self.bad
        if prompts is not None:
            rows = self.settings.loading.batch_size
            prepared = prepare(self.loaded, self._encode(prompts), emit=self.emit, rows=rows)
        if edit is not None:
            self._write([edit])
        return self._generate(prepared, None if edit is None else self.session, 0, early=False).texts[0]

    def score(self, edits: Sequence[TrialEdit], rows: int = 0) -> list[Scores]:
        """Scores of T trials evaluated together, in their order.

        Args:
            edits: the trials, at most as many as the session was made for.
            rows: most rows (trials x prompts) in one forward pass; 0 lets the engine choose.

        Raises:
            torch.OutOfMemoryError: try again with fewer rows.
        """
        return [each for each in self.score_against((), edits, rows) if isinstance(each, Scores)]

    def score_against(
        self, known: Sequence[Known], edits: Sequence[TrialEdit], rows: int = 0
    ) -> list[Scores | Stopped]:
        """As `score`, but a trial that a known one beats in both scores stops as soon as that is certain.

        KL is measured first, in one forward pass a prompt; only trials that can still matter write answers, and they
        stop when the refusals seen so far decide. Exact: what is stopped could never be on the front of all trials.
        The edits stay active, as after `score`.
        """
        self._write(edits)
        rows = rows or self.settings.loading.batch_size
        kls, several = self._divergences(rows)
        better = [better_trial(kl, known) for kl in kls]
        writing = [index for index, each in enumerate(better) if each is None or each[1].refusals > 0]
        if len(writing) < len(edits) and writing:
            self._write([edits[index] for index in writing])
        counts: dict[int, tuple[int, bool]] = dict.fromkeys(range(len(edits)), (0, False))
        if writing:
            limits = [each[1].refusals if each else 0 for each in (better[index] for index in writing)]
            counts |= dict(zip(writing, self._counts(rows, limits), strict=True))
            if len(writing) < len(edits):
                self._write(edits)
        return [
            self._result(*counts[index], kl, tokens, None if counts[index][1] else each)
            for index, (kl, tokens, each) in enumerate(zip(kls, several, better, strict=True))
        ]

    def divergences(self, edits: Sequence[TrialEdit]) -> list[float]:
        """KL of the first token alone, nats, of T trials, which stay active."""
        self._write(edits)
        first = first_token_logprobs(
            self.loaded, self.good, session=self.session, rows=self.settings.loading.batch_size
        )
        return [kl_divergence(self.base, edited) for edited in first]

    def _result(
        self, refusals: int, whole: bool, kl: float, kl_tokens: float | None, better: Known | None
    ) -> Scores | Stopped:
        if whole or better is None:
            return Scores(refusals=refusals, prompts=self.prompts, kl=kl, kl_tokens=kl_tokens)
        number, scores = better
        return Stopped(refusals, self.prompts, kl, kl - scores.kl, number, kl_tokens)

    def _divergences(self, rows: int) -> tuple[list[float], list[float | None]]:
        """KL of the active trials: of the first token, and over several where that was asked for."""
        first = first_token_logprobs(self.loaded, self.good, session=self.session, rows=rows)  # [T, N, V]
        kls = [kl_divergence(self.base, edited) for edited in first]
        several: list[float | None] = [None] * len(kls)
        if self.base_ids is not None:
            forced, _ = answer_logprobs(self.loaded, self.good, self.base_ids, session=self.session, rows=rows)
            several = [kl_divergence(self.base_answers, edited, self.base_mask) for edited in forced]
        return kls, several

    def _counts(self, rows: int, limits: Sequence[int]) -> list[tuple[int, bool]]:
        """For each active trial its raw count and True, or the refusals seen before it gave up at its limit and False."""
        answers = self._generate(self.bad, self.session, rows, early=True, limits=limits)
        return [
            (settled, False) if gave_up else (self.detector.count(texts), True)
            for texts, settled, gave_up in zip(answers.texts, answers.settled, answers.gave_up, strict=True)
        ]

    def _write(self, edits: Sequence[TrialEdit]) -> None:
        self.session.write(build_edits(edits, self.directions, self.loaded.writers, self.rules))

    def _refusals(self, prompts: PreparedPrompts, session: EditSession | None, rows: int) -> list[int]:
        return [self.detector.count(texts) for texts in self._generate(prompts, session, rows, early=True).texts]

    def _generate(
        self,
        prompts: PreparedPrompts,
        session: EditSession | None,
        rows: int,
        *,
        early: bool,
        limits: Sequence[int] | None = None,
    ) -> Generation:
        """Answers; with `early`, each ends where its verdict is settled, and a trial at its limit (0: none) of those."""
        return generate(
            self.loaded,
            prompts,
            max_new_tokens=self.settings.scoring.max_new_tokens,
            session=session,
            settled=self.detector.settled if early else None,
            give_up_at=limits,
            rows=rows or self.settings.loading.batch_size,
        )

    def _encode(self, prompts: Sequence[str]):
        data = self.settings.data
        return encode(
            self.loaded.tokenizer, prompts, system_prompt=data.system_prompt, max_tokens=data.max_prompt_tokens
        )
