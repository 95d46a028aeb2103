"""Greedy answers and log-probabilities for T trials x N prompts, as rows of one batch.

Runs the model (through `prefill` for the prompts, `decoding` and `graphs` for the answers). A row whose answer ended or is
settled leaves, so that the batch holds answers that are still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit
from bruno.engine.model.cache import decoding_cache
from bruno.engine.model.capturable import usable
from bruno.engine.model.chat_format import EncodedPrompts
from bruno.engine.model.decoding import Decoding, GrowingRows, Started, WholeRows, Written
from bruno.engine.model.graphs import GraphedRows
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.model.passes import logits_of
from bruno.engine.model.prefill import prefix_of_trials, sharing, trial_pass, with_states
from bruno.engine.model.prepared import Pass, PreparedBatch, PreparedPrompts
from bruno.engine.model.room import room

_LOOK_AGAIN = 1.25
"""How much longer answers have to be before they are looked at again."""

__all__ = ["Generation", "PreparedPrompts", "answer_logprobs", "first_token_logprobs", "generate", "prepare"]


@dataclass(frozen=True)
class Generation:
    """Answers by trial, then prompt (T = 1 without a session).

    Attributes:
        texts: [T][N], special tokens left out.
        ids: [T][N], generated token ids; the end-of-text token, where it came, is the last.
        ended: [T][N], True where the model ended its answer (False: length limit, or left early).
        settled: [T], how many answers left because they were settled.
        gave_up: [T], True where the trial left whole at its `give_up_at`: its answers are unfinished, and `settled` is
            all that is known of them.
        tokens: number of tokens generated in all.
    """

    texts: list[list[str]]
    ids: list[list[list[int]]]
    ended: list[list[bool]]
    settled: list[int]
    gave_up: list[bool]
    tokens: int


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    *,
    max_new_tokens: int,
    session: EditSession | None = None,
    settled: Callable[[str], bool] | None = None,
    give_up_at: Sequence[int] | None = None,
    rows: int = 0,
) -> Generation:
    """Greedy answers to every prompt, for every trial of the session (of the base model without one, or when it is off).

    Same tokens as `model.generate(do_sample=False)` without penalties. A row leaves the batch when its answer ended or
    `settled(text so far)` is true.

    Args:
        max_new_tokens: longest answer, at least 1.
        give_up_at: for each trial, the number of settled answers at which all of its rows leave; 0 is never.
        rows: most rows (trials x prompts) decoded together; 0 lets the engine choose.

    Raises:
        torch.OutOfMemoryError: the caller halves `rows` and tries again.
    """
    if not prepared.answers:
        raise ValueError("these prompts were prepared for first tokens alone")
    trials = max(1, session.trials if session else 0)
    answers = _Answers(loaded, len(prepared.prompts), max_new_tokens, list(give_up_at or [0] * trials))
    try:
        together = rows or _rows_together(loaded, prepared, max_new_tokens)
        with loaded.running(session):
            for wave in _waves(loaded, prepared, session, together, answers):
                _write_out(_decoding(loaded, prepared, wave, max_new_tokens, session), answers, settled)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            loaded.workspace.release()
        raise
    return answers.generation()


def _write_out(decoding: Decoding, answers: _Answers, settled: Callable[[str], bool] | None) -> None:
    """One wave, until its last answer is finished."""
    length = looked = 0
    while decoding.rows:
        written = decoding.tokens()
        finished = {row for row, each in enumerate(written) if answers.add(*each)}
        step = max((len(tokens) for *_, tokens in written), default=0)
        length += step
        # Where tokens come in chunks a GPU writes on, and may do so faster than hundreds of answers are read again.
        if settled is not None and (step == 1 or length >= _LOOK_AGAIN * looked):
            finished |= answers.settle(written, settled)
            looked = length
        decoding.drop(sorted(finished))
        if decoding.rows:
            decoding.step()


class _Answers:
    """What has been written so far, and which trials have given up."""

    def __init__(self, loaded: LoadedModel, prompts: int, longest: int, limits: list[int]) -> None:
        self._tokenizer, self._ends = loaded.tokenizer, end_tokens(loaded)
        self._longest, self._limits = longest, limits
        self.ids: list[list[list[int]]] = [[[] for _ in range(prompts)] for _ in limits]
        self._ended = [[False] * prompts for _ in limits]
        self._settled = [[False] * prompts for _ in limits]
        self.gave_up = [False] * len(limits)

    def add(self, trial: int, prompt: int, tokens: Sequence[int]) -> bool:
        """Put tokens behind an answer; what comes behind its end is left out. Whether it is finished."""
        answer = self.ids[trial][prompt]
        for token in tokens:
            answer.append(token)
            if token in self._ends:
                self._ended[trial][prompt] = True
                return True
            if len(answer) == self._longest:
                return True
        return False

    def settle(self, written: Sequence[Written], settled: Callable[[str], bool]) -> set[int]:
        """Rows whose verdict is settled now, and all rows of trials that have given up."""
        texts = self._tokenizer.batch_decode([self.ids[t][p] for t, p, _ in written], skip_special_tokens=True)
        done = {row for row, text in enumerate(texts) if settled(text)}
        for row in done:
            trial, prompt, _ = written[row]
            self._settled[trial][prompt] = True
        for trial, limit in enumerate(self._limits):
            self.gave_up[trial] |= bool(limit) and sum(self._settled[trial]) >= limit
        return done | {row for row, (trial, _, _) in enumerate(written) if self.gave_up[trial]}

    def generation(self) -> Generation:
        texts = [self._tokenizer.batch_decode(answers, skip_special_tokens=True) for answers in self.ids]
        tokens = sum(len(answer) for answers in self.ids for answer in answers)
        return Generation(texts, self.ids, self._ended, [sum(s) for s in self._settled], self.gave_up, tokens)


def _decoding(
    loaded: LoadedModel, prepared: PreparedPrompts, wave: list[Started], longest: int, session: EditSession | None
) -> Decoding:
    """The fastest way of writing that these prompts allow (`prepare` has tried them)."""
    session = session if session is not None and session.trials else None
    if prepared.graphs:
        return GraphedRows(loaded, prepared, wave, longest, session)
    if prepared.cache == "blocks":
        return GrowingRows(loaded, prepared, wave, longest, session)
    return WholeRows(loaded, wave, session, own=prepared.cache == "own")


def _rows_together(loaded: LoadedModel, prepared: PreparedPrompts, longest: int) -> int:
    """How many rows are decoded together where nobody says: what memory holds, on a GPU with graphs."""
    return room(loaded, prepared, longest) if prepared.graphs else 4 * loaded.default_rows


def prepare(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0, answers: bool = True
) -> PreparedPrompts:
    """Do the base model's share of the work once, and find the fastest way of writing answers to these prompts.

    Call outside a session, or with the session off.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so.
        answers: whether answers will be written to these prompts; without, first tokens alone can be asked for, and less
            memory is kept.
    """
    prepared = with_states(loaded, prompts, emit=emit, rows=rows, answers=answers)
    return replace(prepared, graphs=prepared.answers and usable(loaded, prepared, emit))


@torch.inference_mode()
def first_token_logprobs(
    loaded: LoadedModel, prepared: PreparedPrompts, *, session: EditSession | None = None, rows: int = 0
) -> torch.Tensor:
    """log p(first answer token), [T, N, V] fp32 on the model's device.

    Without a session, or for a trial that edits nothing, these are the kept ones of `prepare`: KL(base, base) is 0
    exactly. `rows` is the most prompts in one pass (0: as prepared).
    """
    result: torch.Tensor | None = None
    with loaded.running(session):
        prefixes = prefix_of_trials(loaded, prepared, session)
        for item in prepared.pieces(rows):
            count, indices = len(item.batch.indices), item.batch.indices.to(loaded.device, non_blocking=True)
            for trials in _groups(loaded, prepared, session, item):
                edited = session is not None and session.trials and session.first_layer[trials[0]] < loaded.layers
                logits = item.logits
                if edited:
                    logits = trial_pass(loaded, prepared, item, prefixes, session, trials).logits
                if result is None:
                    shape = (len(prefixes), len(prepared.prompts), logits.shape[-1])
                    result = logits.new_empty(shape, dtype=torch.float32)
                for row, trial in enumerate(trials):
                    own = logits[row * count : (row + 1) * count] if edited else logits
                    result[trial, indices] = own.float().log_softmax(-1)
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
    if not prepared.answers:
        raise ValueError("these prompts were prepared for first tokens alone")
    device, count = loaded.device, len(answers)
    longest = max(map(len, answers), default=0)
    tokens = torch.full((count, longest), prepared.prompts.pad_id, device=device)
    mask = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = torch.tensor(answer, device=device)
        mask[row, : len(answer)] = True
    result: torch.Tensor | None = None
    with loaded.running(session):
        prefixes = prefix_of_trials(loaded, prepared, session)
        for item in prepared.pieces(rows):
            indices = item.batch.indices.to(device)
            for trial in range(len(prefixes)):
                given, real = tokens[indices, :-1], mask[indices, :-1]
                if prepared.cache == "blocks":
                    done = trial_pass(loaded, prepared, item, prefixes, session, [trial])
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


def _waves(
    loaded: LoadedModel, prepared: PreparedPrompts, session: EditSession | None, rows: int, answers: _Answers
) -> Iterator[list[Started]]:
    """The passes of all trials over all prompts, gathered into waves of about `rows` rows (at least one pass each).

    Trials that have given up in an earlier wave are left out.
    """
    prefixes = prefix_of_trials(loaded, prepared, session)
    wave: list[Started] = []
    for item in prepared.pieces(rows):
        count = len(item.batch.indices)
        for group in _groups(loaded, prepared, session, item, max(1, rows // count)):
            if wave and sum(len(s.owners) for s in wave) + len(group) * count > rows:
                yield wave
                wave = []
            trials = [trial for trial in group if not answers.gave_up[trial]]
            if trials:
                run = partial(trial_pass, loaded, prepared, item, prefixes, session, trials)
                wave.append(Started(trials, item, run))
    if wave:
        yield wave


def _groups(
    loaded: LoadedModel, prepared: PreparedPrompts, session: EditSession | None, item: PreparedBatch, most: int = 0
) -> list[list[int]]:
    """Trials that share a pass over a batch, at most so many (0: any number); the ones that edit nothing apart."""
    if session is None or not session.trials:
        return [[0]]
    begins = session.first_layer
    edited = [trial for trial, begin in enumerate(begins) if begin < loaded.layers]
    shared = sharing(loaded, prepared, item, [begins[trial] for trial in edited], most)
    together = [[edited[position] for position in group] for group in shared]
    return together + [[trial] for trial, begin in enumerate(begins) if begin >= loaded.layers]
