"""Greedy answers and log-probabilities for T trials x N prompts, as rows of one batch.

Runs the model (through `prefill` for the prompts). While decoding, a row whose answer ended or is settled gives its place
to the last row at once, so the batch only ever holds answers that are still being written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from bruno.engine.edits.session import EditSession
from bruno.engine.model.loading import LoadedModel
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
        decoding = _Decoding(loaded, wave, prepared.prefix, max_new_tokens)
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
            logprobs = trial_pass(loaded, prepared, item, prefix, session, trial).logits.float().log_softmax(-1)
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
            done = trial_pass(loaded, prepared, item, prefix, session, trial)
            logits = done.logits[:, None]
            if longest > 1:
                following = _continue(loaded, item, done, tokens[indices, :-1], mask[indices, :-1])
                logits = torch.cat([logits, following], dim=1)
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
    loaded: LoadedModel, decoding: _Decoding, ids: list[list[list[int]]], settled: Callable[[str], bool]
) -> list[int]:
    texts = loaded.tokenizer.batch_decode([ids[t][p] for t, p in decoding.owners], skip_special_tokens=True)
    return [row for row, text in enumerate(texts) if settled(text)]


def _continue(
    loaded: LoadedModel, item: PreparedBatch, done: Pass, tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Logits of the positions of `tokens` [B, K - 1], which follow the prompts of a pass: [B, K - 1, V]."""
    cache = Cache(layers=[Slab(k, v, k.shape[2] + tokens.shape[1]) for k, v in done.keys_values])
    steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return loaded.model(
        input_ids=tokens,
        attention_mask=torch.cat([item.mask, mask.to(item.mask.dtype)], dim=1),
        position_ids=item.batch.position_ids[:, -1:] + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits


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


class Slab(DynamicLayer):
    """One block's keys and values in a tensor of full length from the start, written in place.

    The library's dynamic layer copies everything it holds for every token. Rows can leave: `move` fills their places.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        super().__init__()
        shape = (*keys.shape[:2], capacity, keys.shape[3])
        self._keys, self._values = keys.new_empty(shape), values.new_empty((*shape[:3], values.shape[3]))
        self.length = keys.shape[2]
        self._keys[:, :, : self.length], self._values[:, :, : self.length] = keys, values
        self.lazy_initialization(keys, values)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object):
        """Write new positions; returns views [B, heads, length so far, head_dim]."""
        rows, end = key_states.shape[0], self.length + key_states.shape[2]
        self._keys[:rows, :, self.length : end] = key_states
        self._values[:rows, :, self.length : end] = value_states
        self.length = end
        return self._keys[:rows, :, :end], self._values[:rows, :, :end]

    def move(self, sources: torch.Tensor, places: torch.Tensor) -> None:
        """Rows `places` become copies of rows `sources`."""
        self._keys[places, :, : self.length] = self._keys[sources, :, : self.length]
        self._values[places, :, : self.length] = self._values[sources, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0


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
            [_widened(s.item.mask[:, None, :, None], prefix, width)[:, 0, :, 0] for s in wave]
        )
        self._position = torch.cat([s.item.batch.position_ids[:, -1] for s in wave])
        self._next = torch.cat([s.done.logits.argmax(-1) for s in wave])
        self._slabs: list[Slab] = []
        for layer in range(loaded.layers):
            keys, values = (
                torch.cat([_widened(s.done.keys_values[layer][side], prefix, width) for s in wave]) for side in (0, 1)
            )
            self._slabs.append(Slab(keys, values, width + max_new_tokens))
        self._cache = Cache(layers=list(self._slabs))

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
        if places:
            into = torch.tensor(places, device=self._mask.device)
            out_of = torch.tensor(sources, device=self._mask.device)
            for tensor in (self._mask, self._position, self._next):
                tensor[into] = tensor[out_of]
            for slab in self._slabs:
                slab.move(out_of, into)
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
        logits = self._loaded.model(
            input_ids=self._next[live, None],
            attention_mask=self._mask[live, : self._width],
            position_ids=self._position[live, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self._next[live] = logits[:, -1].argmax(-1)


def _widened(tensor: torch.Tensor, prefix: int, width: int) -> torch.Tensor:
    """[B, H, P + S, D] with zeros between prefix and the rest, so that the third axis is `width` long."""
    missing = width - tensor.shape[2]
    if not missing:
        return tensor
    gap = tensor.new_zeros(*tensor.shape[:2], missing, tensor.shape[3])
    return torch.cat([tensor[:, :, :prefix], gap, tensor[:, :, prefix:]], dim=2)
