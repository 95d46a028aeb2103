"""Greedy answers and log-probabilities for T trials x N prompts, as rows of one batch.

Runs the model (through `prefill` for the prompts). While decoding, a row whose answer ended or is settled gives its place
to the last row at once, so the batch only ever holds answers that are still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import Cache

from bruno.engine.edits.session import EditSession
from bruno.engine.model.cache import decoding_cache, widened
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.passes import logits_of
from bruno.engine.model.prefill import Pass, PreparedBatch, PreparedPrompts, prefix_of_trials, prepare, trial_pass

__all__ = ["Generation", "PreparedPrompts", "answer_logprobs", "first_token_logprobs", "generate", "prepare"]


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


@torch.inference_mode()
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

    Same tokens as `model.generate(do_sample=False)` without penalties. A row leaves the batch when its answer ended or
    `settled(text so far)` is true.

    Args:
        max_new_tokens: longest answer, at least 1.
        rows: most rows (trials x prompts) decoded together; 0 lets the engine choose.

    Raises:
        torch.OutOfMemoryError: the caller halves `rows` and tries again.
    """
    trials = max(1, session.trials if session else 0)
    count = len(prepared.prompts)
    ids: list[list[list[int]]] = [[[] for _ in range(count)] for _ in range(trials)]
    ended = [[False] * count for _ in range(trials)]
    ends = end_tokens(loaded)
    for wave in _waves(loaded, prepared, session, rows or 4 * loaded.default_rows):
        if prepared.cache == "blocks":
            decoding = _Decoding(loaded, wave, prepared.prefix, max_new_tokens)
        else:
            decoding = _WholeRows(loaded, wave, own=prepared.cache == "own")
        while decoding.rows:
            finished = []
            for row, (trial, prompt, token) in enumerate(decoding.tokens()):
                answer = ids[trial][prompt]
                answer.append(token)
                ended[trial][prompt] = token in ends
                if token in ends or len(answer) == max_new_tokens:
                    finished.append(row)
            if settled is not None:
                finished = sorted({*finished, *_settled_rows(loaded, decoding, ids, settled)})
            decoding.drop(finished)
            if decoding.rows:
                decoding.step(session)
    texts = [loaded.tokenizer.batch_decode(answers, skip_special_tokens=True) for answers in ids]
    return Generation(texts, ids, ended, sum(len(answer) for answers in ids for answer in answers))


@torch.inference_mode()
def first_token_logprobs(
    loaded: LoadedModel, prepared: PreparedPrompts, *, session: EditSession | None = None, rows: int = 0
) -> torch.Tensor:
    """log p(first answer token), [T, N, V] fp32 on the model's device.

    Without a session, or for a trial that edits nothing, these are the kept ones of `prepare`: KL(base, base) is 0
    exactly. `rows` is the most prompts in one pass (0: as prepared).
    """
    prefixes = prefix_of_trials(loaded, prepared, session)
    result: torch.Tensor | None = None
    for item in prepared.pieces(rows):
        for trial, prefix in enumerate(prefixes):
            edited = session is not None and session.trials and session.first_layer[trial] < loaded.layers
            logits = trial_pass(loaded, prepared, item, prefix, session, trial).logits if edited else item.logits
            logprobs = logits.float().log_softmax(-1)
            if result is None:
                result = logprobs.new_empty(len(prefixes), len(prepared.prompts), logprobs.shape[-1])
            result[trial, item.batch.indices.to(result.device)] = logprobs
    return torch.empty(len(prefixes), 0, 0) if result is None else result


@torch.inference_mode()
def answer_logprobs(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    answers: list[list[int]],
    *,
    session: EditSession | None = None,
    rows: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced log-probabilities over given answers, one for each prompt, of at most K tokens.

    Returns:
        log p [T, N, K, V] fp32 (position j predicts answer token j), and a mask [N, K], False beyond each answer's end.
    """
    device, count = loaded.device, len(answers)
    longest = max(map(len, answers), default=0)
    tokens = torch.full((count, longest), prepared.prompts.pad_id, device=device)
    mask = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = torch.tensor(answer, device=device)
        mask[row, : len(answer)] = True
    prefixes = prefix_of_trials(loaded, prepared, session)
    result: torch.Tensor | None = None
    for item in prepared.pieces(rows):
        indices = item.batch.indices.to(device)
        for trial, prefix in enumerate(prefixes):
            given, real = tokens[indices, :-1], mask[indices, :-1]
            if prepared.cache == "blocks":
                done = trial_pass(loaded, prepared, item, prefix, session, trial)
                logits = done.logits[:, None]
                if longest > 1:
                    logits = torch.cat([logits, _continue(loaded, prepared, item, done, given, real)], dim=1)
            else:
                logits = _whole_answers(loaded, item, session, trial, given, real)
            if result is None:
                result = torch.empty(len(prefixes), count, longest, logits.shape[-1], device=device)
            result[trial, indices] = logits.float().log_softmax(-1)
    return torch.empty(len(prefixes), 0, 0, 0) if result is None else result, mask


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Token ids that end an answer: the generation config's, else the tokenizer's."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    configured = loaded.tokenizer.eos_token_id if configured is None else configured
    return frozenset(
        token for token in (configured if isinstance(configured, list) else [configured]) if isinstance(token, int)
    )


def _settled_rows(
    loaded: LoadedModel, decoding: _Decoding | _WholeRows, ids: list[list[list[int]]], settled: Callable[[str], bool]
) -> list[int]:
    texts = loaded.tokenizer.batch_decode([ids[t][p] for t, p in decoding.owners], skip_special_tokens=True)
    return [row for row, text in enumerate(texts) if settled(text)]


def _continue(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    item: PreparedBatch,
    done: Pass,
    tokens: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Logits of the positions of `tokens` [B, K - 1], which follow the prompts of a pass: [B, K - 1, V]."""
    width = item.mask.shape[1]
    cache, _ = decoding_cache([done.blocks], prepared.prefix, width, width + tokens.shape[1])
    return logits_of(loaded, tokens, *_following(item, tokens, mask), cache)


def _whole_answers(
    loaded: LoadedModel,
    item: PreparedBatch,
    session: EditSession | None,
    trial: int,
    tokens: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Logits [B, K, V] of the answers' positions in one pass without a cache, `tokens` and `mask` [B, K - 1]."""
    if session is not None and session.trials:
        session.rows_of(trial)
    ids = torch.cat([item.batch.input_ids, tokens], dim=1)
    longer, following = _following(item, tokens, mask)
    positions = torch.cat([item.batch.position_ids, following], dim=1)
    return logits_of(loaded, ids, longer, positions, None, keep=tokens.shape[1] + 1)


def _following(item: PreparedBatch, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask [B, P + S + K] and positions [B, K] for K tokens after the prompts."""
    steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return torch.cat([item.mask, mask.to(item.mask.dtype)], dim=1), item.batch.position_ids[:, -1:] + steps


@dataclass(frozen=True)
class _Started:
    """A trial's prompts, ready to be answered: the pass over them, and which they are."""

    trial: int
    item: PreparedBatch
    done: Pass


def _waves(
    loaded: LoadedModel, prepared: PreparedPrompts, session: EditSession | None, rows: int
) -> Iterator[list[_Started]]:
    """The passes of all trials over all prompts, gathered into waves of about `rows` rows (at least one pass each)."""
    prefixes = prefix_of_trials(loaded, prepared, session)
    wave: list[_Started] = []
    for item in prepared.pieces(rows):
        for trial, prefix in enumerate(prefixes):
            if wave and sum(len(s.item.batch.indices) for s in wave) + len(item.batch.indices) > rows:
                yield wave
                wave = []
            wave.append(_Started(trial, item, trial_pass(loaded, prepared, item, prefix, session, trial)))
    if wave:
        yield wave


class _Decoding:
    """A wave of answers being written; rows 0 to `rows` - 1 of every tensor are the live ones."""

    def __init__(self, loaded: LoadedModel, wave: list[_Started], prefix: int, max_new_tokens: int) -> None:
        self._loaded = loaded
        self.owners = [(s.trial, int(i)) for s in wave for i in s.item.batch.indices]
        self.rows = len(self.owners)
        width = max(s.item.mask.shape[1] for s in wave)
        self._width = width
        device = loaded.device
        self._mask = torch.zeros(self.rows, width + max_new_tokens, dtype=torch.long, device=device)
        self._mask[:, width:] = 1
        self._mask[:, :width] = torch.cat(
            [widened(s.item.mask[:, None, :, None], prefix, width)[:, 0, :, 0] for s in wave]
        )
        self._position = torch.cat([s.item.batch.position_ids[:, -1] for s in wave])
        self._next = torch.cat([s.done.logits.argmax(-1) for s in wave])
        self._cache, self._layers = decoding_cache([s.done.blocks for s in wave], prefix, width, width + max_new_tokens)

    def tokens(self) -> list[tuple[int, int, int]]:
        """(trial, prompt, newest token) for each live row."""
        newest = self._next[: self.rows].tolist()
        return [(trial, prompt, token) for (trial, prompt), token in zip(self.owners, newest, strict=True)]

    def drop(self, finished: list[int]) -> None:
        """Live rows beyond the new end move into the places of finished ones before it."""
        gone = set(finished)
        kept = self.rows - len(gone)
        places = [row for row in range(kept) if row in gone]
        sources = [row for row in range(kept, self.rows) if row not in gone]
        self.rows = kept
        into = torch.tensor(places, device=self._mask.device, dtype=torch.long)
        out_of = torch.tensor(sources, device=self._mask.device, dtype=torch.long)
        if finished and kept:
            for tensor in (self._mask, self._position, self._next):
                tensor[into] = tensor[out_of]
            for layer in self._layers:
                layer.move(out_of, into, kept)
        for place, source in zip(places, sources, strict=True):
            self.owners[place] = self.owners[source]
        del self.owners[kept:]

    def step(self, session: EditSession | None) -> None:
        """One more token for every live row."""
        if session is not None and session.trials:
            session.rows(torch.tensor([trial for trial, _ in self.owners]))
        live = slice(0, self.rows)
        self._width += 1
        self._position[live] += 1
        logits = logits_of(
            self._loaded,
            self._next[live, None],
            self._mask[live, : self._width],
            self._position[live, None],
            self._cache,
            keep=1,
        )
        self._next[live] = logits[:, -1].argmax(-1)


class _WholeRows:
    """Answers of one model whose cache cannot be taken apart: each pass keeps its rows until all of them have ended.

    With `own`, every pass goes on in the cache that the model made for it; otherwise all positions are computed again
    for every token.
    """

    def __init__(self, loaded: LoadedModel, wave: list[_Started], *, own: bool) -> None:
        self._loaded, self._own = loaded, own
        self._passes = [_Rows(s.trial, s.done.own, s.item) for s in wave]
        self._live = [(each, row) for each in self._passes for row in range(len(each.next))]
        for started, each in zip(wave, self._passes, strict=True):
            each.next = started.done.logits.argmax(-1)

    @property
    def rows(self) -> int:
        return len(self._live)

    @property
    def owners(self) -> list[tuple[int, int]]:
        return [(each.trial, each.prompts[row]) for each, row in self._live]

    def tokens(self) -> list[tuple[int, int, int]]:
        """(trial, prompt, newest token) for each live row."""
        newest = {id(each): each.next.tolist() for each in self._passes}
        return [(each.trial, each.prompts[row], newest[id(each)][row]) for each, row in self._live]

    def drop(self, finished: list[int]) -> None:
        """These live rows are not read any more."""
        gone = set(finished)
        self._live = [live for row, live in enumerate(self._live) if row not in gone]

    def step(self, session: EditSession | None) -> None:
        """One more token for every row of the passes that have a live one."""
        needed = {id(each) for each, _ in self._live}
        self._passes = [each for each in self._passes if id(each) in needed]
        for each in self._passes:
            if session is not None and session.trials:
                session.rows_of(each.trial)
            each.append(each.next)
            ids, positions = (each.ids[:, -1:], each.positions[:, -1:]) if self._own else (each.ids, each.positions)
            logits = logits_of(self._loaded, ids, each.mask, positions, each.cache if self._own else None, keep=1)
            each.next = logits[:, -1].argmax(-1)


class _Rows:
    """The rows of one pass in `_WholeRows`: everything they hold so far, [B, S so far]."""

    def __init__(self, trial: int, cache: Cache | None, item: PreparedBatch) -> None:
        self.trial, self.cache = trial, cache
        self.prompts = item.batch.indices.tolist()
        self.ids, self.mask, self.positions = item.batch.input_ids, item.mask, item.batch.position_ids
        self.next = self.ids[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        """A token [B] for each row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], dim=1)
