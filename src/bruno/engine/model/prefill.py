"""What trials share, computed once: the prompts' states in the base model, and passes that begin where a trial first edits.

Three things are never computed twice. The tokens that all prompts begin with (chat template, system text) are one row,
not N. Blocks below a trial's first edited one see what the base model sees, so a trial's pass starts from the base
model's kept states there. And the base model's own first answer token is kept with them.

Runs the model; keeps tensors on its device. Where a model does not allow this (checked on real prompts, not assumed),
or memory is short, every prompt is computed whole instead; where its cache cannot be taken apart, answers are written
with the cache that the model makes for itself, and where even that is wrong, without any. An event says so each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit, Fallback
from bruno.engine.model.architectures import decoder_config, find_blocks
from bruno.engine.model.cache import BlockCache, cache_of, decoding_cache, held, is_recurrent, why_not_blocks
from bruno.engine.model.chat_format import Batch, EncodedPrompts
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import free_memory, halving, is_out_of_memory
from bruno.engine.model.passes import forward, keeping_inputs, logits_of, own_cache_pass
from bruno.engine.model.prepared import CacheUse, Pass, PreparedBatch, PreparedPrompts
from bruno.engine.model.probes import disagreement
from bruno.engine.model.sharing import BlockCost, groups, prompts_of_pass
from bruno.errors import BrunoError, first_line

_KEPT_STATES = 16  # blocks whose inputs are kept; a pass starts at most L / 16 blocks too low
_MEMORY_SHARE = 0.25  # of what is free, for kept states
_LONGEST_ANSWER = 4096  # tokens; see `_usable_prefix`
_NAMES: dict[CacheUse, str] = {
    "blocks": "rows of several trials in one cache",
    "own": "the model's own cache",
    "none": "no cache: every token computes its whole row again",
}
_UNUSABLE = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises that cannot be run in a way it was not made for."""


def with_states(
    loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0, answers: bool = True
) -> PreparedPrompts:
    """Do the base model's share of the work once. Call outside a session, or with the session off.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so.
        answers: whether more than the first token will be asked for; without, keys and values of the prompts' own
            positions are not kept.
    """
    if not prompts.ids:
        return PreparedPrompts(prompts, loaded.layers, 0, {}, [], [], reuse=True)
    rows = rows or _rows(loaded, prompts)
    whole = why_not_blocks(decoder_config(loaded.model)) or ("" if loaded.pads else "its rows cannot be padded")
    reason = whole or _why_not_reuse(loaded, prompts)
    if not reason:
        prefix = _usable_prefix(loaded, prompts)
        prepared = halving(lambda size: _prepare(loaded, prompts, size, prefix, "blocks", reuse=True), rows, emit)
        reason = _check_reuse(loaded, prepared)
        if reason and loaded.lean is not None and not loaded.lean.refused:
            loaded.lean.refused = True
            emit(Fallback(method="Lean blocks", reason=reason, instead="the library's blocks"))
            return with_states(loaded, prompts, emit=emit, rows=rows, answers=answers)
        if not reason:
            return prepared if answers else prepared.for_first_tokens()
    emit(Fallback(method="Reuse of the base model's states", reason=reason, instead="whole passes for every trial"))
    uses: tuple[CacheUse, ...] = ("own", "none") if whole else ("blocks", "own", "none")
    for use, following in zip(uses, (*uses[1:], None), strict=True):
        # `use` as a default, because the function outlives this turn of the loop in the eyes of a reader
        prepared = halving(lambda size, use=use: _prepare(loaded, prompts, size, 0, use, reuse=False), rows, emit)
        reason = _check_cache(loaded, prepared)
        if not reason or following is None:
            break
        emit(Fallback(method=f"Writing answers with {_NAMES[use]}", reason=reason, instead=_NAMES[following]))
    return prepared


def _rows(loaded: LoadedModel, prompts: EncodedPrompts) -> int:
    """Prompts in one pass where nobody says."""
    if loaded.device.type != "cuda":
        return loaded.default_rows
    start = prompts.shared_prefix()
    return prompts_of_pass([len(ids) - start for ids in prompts.ids], loaded.default_rows, _cost(loaded))


def prefix_of_trials(
    loaded: LoadedModel, prepared: PreparedPrompts, session: EditSession | None
) -> list[list[BlockCache]]:
    """The shared prefix as each trial sees it, in one pass: for each trial, the blocks' caches of one row.

    Kept until other edits are written: all prompts of a run begin with the same tokens.
    """
    base = prepared.prefix_blocks
    if session is None or not session.trials or not prepared.prefix:
        return [base] * max(1, session.trials if session else 0)
    trials = session.trials
    start = prepared.start(min(session.first_layer))
    if start >= loaded.layers:
        return [base] * trials
    found = (session, session.written, prepared.prompts.ids[0][: prepared.prefix])
    kept = loaded.workspace.prefixes
    if kept is not None and kept[0] == found:
        return kept[1]
    session.rows(torch.arange(trials))
    device = loaded.device
    ids = torch.tensor([prepared.prompts.ids[0][: prepared.prefix]], device=device).expand(trials, -1)
    mask = torch.ones_like(ids)
    state = prepared.prefix_states[start].expand(trials, -1, -1) if start else None
    cache = cache_of(decoder_config(loaded.model))
    positions = torch.arange(prepared.prefix, device=device).expand(trials, -1)
    forward(loaded, Batch(torch.arange(trials), ids, mask, positions), mask, cache, start, state)
    own = held(cache, start)
    prefixes = [[*base[:start], *(block.rows(slice(t, t + 1)) for block in own)] for t in range(trials)]
    loaded.workspace.prefixes = (found, prefixes)
    return prefixes


def trial_pass(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    item: PreparedBatch,
    prefixes: Sequence[list[BlockCache]],
    session: EditSession | None,
    trials: Sequence[int],
) -> Pass:
    """A pass over some of the prompts for each of some trials, from the first block that any of them edits.

    Args:
        prefixes: of all trials, from `prefix_of_trials`.
        trials: their rows lie one behind the other. More than one only where `prepared.reuse`.
    """
    count = len(item.batch.indices)
    start = prepared.start(loaded.layers)
    if session and session.trials:
        start = min(prepared.start(session.first_layer[trial]) for trial in trials)
        of_row = torch.tensor(trials).repeat_interleave(count)
        session.rows(of_row)
    if prepared.cache == "own":
        logits, own = own_cache_pass(loaded, item.batch, item.mask)
        return Pass(logits, [], own=own)
    if prepared.cache == "none":
        return Pass(forward(loaded, item.batch, item.mask, None), [])
    item = item.repeated(len(trials), start)
    if start >= loaded.layers and prepared.reuse:
        return Pass(item.logits, [], prepared.prefix_blocks, item.blocks)
    cache = cache_of(decoder_config(loaded.model), [prefixes[trial] for trial in trials], count)
    logits = forward(loaded, item.batch, item.mask, cache, start, item.states.get(start))
    return Pass(logits, held(cache, start), prepared.prefix_blocks[:start], item.blocks)


def sharing(
    loaded: LoadedModel, prepared: PreparedPrompts, item: PreparedBatch, begins: Sequence[int], most: int
) -> list[list[int]]:
    """Which of some trials share a pass over a batch, as positions in `begins`: on a GPU those that cost least together,
    elsewhere none.

    Args:
        begins: the lowest block that each of them edits.
        most: the largest group; 0 for any.
    """
    if loaded.device.type != "cuda" or not prepared.reuse:
        return [[trial] for trial in sorted(range(len(begins)), key=lambda trial: begins[trial])]
    starts = [prepared.start(begin) for begin in begins]
    tokens = item.batch.input_ids.numel()
    return groups(starts, loaded.layers, tokens, _cost(loaded), most or len(begins))


def _cost(loaded: LoadedModel) -> BlockCost:
    parameters = sum(p.numel() for p in find_blocks(loaded.model).parameters())
    return BlockCost.on_gpu(parameters, loaded.layers, lean=loaded.lean is not None and not loaded.lean.refused)


@torch.inference_mode()
def _why_not_reuse(loaded: LoadedModel, prompts: EncodedPrompts) -> str:
    """Why states cannot be kept for these prompts; "" when they can. What a prompt needs is measured on one."""
    config = decoder_config(loaded.model)
    (batch,) = EncodedPrompts((min(prompts.ids, key=len),), prompts.pad_id).batches(1, loaded.device)
    try:
        cache = cache_of(config)
        forward(loaded, batch, batch.attention_mask, cache)
        blocks = held(cache)
        by_token = sum(t.nbytes for block in blocks for t in block.positions) / batch.input_ids.shape[1]
        by_row = sum(t.nbytes for block in blocks for t in block.summary)
    except _UNUSABLE as error:
        if is_out_of_memory(error):
            raise BrunoError("Memory does not hold a single prompt", fix="Choose a larger machine") from error
        return f"this model does not run with it: {first_line(error)}"
    by_token += min(loaded.layers, 2 * _KEPT_STATES) * config.hidden_size * loaded.dtype.itemsize
    size = by_token * sum(map(len, prompts.ids)) + by_row * len(prompts)
    free = free_memory(loaded.device)
    if size > _MEMORY_SHARE * free:
        return f"{size / 2**30:.1f} GiB of states do not fit beside the model, {free / 2**30:.1f} GiB are free"
    return ""


def window_of(config) -> int:
    """How far back the shortest-sighted blocks see, in positions; 0 where all see everything."""
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return (getattr(config, "sliding_window", None) or 0) if windowed else 0


def _usable_prefix(loaded: LoadedModel, prompts: EncodedPrompts) -> int:
    """Length of the shared prefix; 0 for one too short to pay, or where a block could see the gap behind it.

    Rows are laid out prefix, padding, own tokens. Full attention masks the padding; a window counts it as distance, and a
    running state decays over it.
    """
    prefix = prompts.shared_prefix()
    config = decoder_config(loaded.model)
    if is_recurrent(config):
        return 0
    window = window_of(config)
    longest = max(map(len, prompts.ids), default=0)
    return 0 if prefix < 4 or (window and longest + _LONGEST_ANSWER > window) else prefix


@torch.inference_mode()
def _prepare(
    loaded: LoadedModel, prompts: EncodedPrompts, rows: int, prefix: int, use: CacheUse, *, reuse: bool
) -> PreparedPrompts:
    stride = max(1, loaded.layers // _KEPT_STATES)
    kept = range(stride, loaded.layers, stride) if reuse else range(0)
    config = decoder_config(loaded.model)
    prefix_states: dict[int, torch.Tensor] = {}
    prefix_blocks: list[BlockCache] = []
    if prefix:
        ids = torch.tensor([prompts.ids[0][:prefix]], device=loaded.device)
        positions = torch.arange(prefix, device=loaded.device)[None]
        cache = cache_of(config)
        with loaded.running(None), keeping_inputs(loaded, kept) as prefix_states:
            forward(loaded, Batch(torch.zeros(1), ids, torch.ones_like(ids), positions), torch.ones_like(ids), cache)
        prefix_blocks = held(cache)
    batches = []
    for batch in prompts.batches(rows, loaded.device, start=prefix, equal_lengths=not loaded.pads):
        mask = torch.cat([batch.attention_mask.new_ones(len(batch.indices), prefix), batch.attention_mask], dim=1)
        cache = cache_of(config, [prefix_blocks], len(batch.indices)) if reuse else None
        with loaded.running(None), keeping_inputs(loaded, kept) as states:
            logits = forward(loaded, batch, mask, cache)
        own = [block.after(prefix) for block in held(cache)] if cache else []
        batches.append(PreparedBatch(batch, mask, logits, states, own))
    return PreparedPrompts(prompts, loaded.layers, prefix, prefix_states, prefix_blocks, batches, reuse, use)


@torch.inference_mode()
def _check_reuse(loaded: LoadedModel, prepared: PreparedPrompts) -> str:
    """Compare a pass from the middle, and one more token, with plain passes on a few real prompts; why reuse is unsafe."""
    item = prepared.batches[0].rows(slice(0, 4))
    start = prepared.start(loaded.layers // 2)
    config = decoder_config(loaded.model)
    try:
        cache = cache_of(config, [prepared.prefix_blocks], len(item.batch.indices))
        with loaded.running(None):
            resumed = forward(loaded, item.batch, item.mask, cache, start, item.states.get(start))
            done = Pass(resumed, held(cache, start), prepared.prefix_blocks[:start], item.blocks[:start])
            written = _one_more(loaded, prepared, item, done)
        plain = _plain(loaded, prepared, item)
    except _UNUSABLE as error:
        if is_out_of_memory(error):
            raise
        return f"this model's blocks cannot be entered in the middle: {first_line(error)}"
    difference = disagreement(loaded.model, plain, torch.stack([resumed, written], dim=1))
    return f"a pass from the middle differs from a whole one (KL {difference:.2g})" if difference else ""


@torch.inference_mode()
def _check_cache(loaded: LoadedModel, prepared: PreparedPrompts) -> str:
    """Compare a token that is written with the cache with a whole pass, on a few real prompts; why it is unsafe, or ""."""
    item = prepared.batches[0].rows(slice(0, 4))
    try:
        done = trial_pass(loaded, prepared, item, [prepared.prefix_blocks], None, [0])
        written = _one_more(loaded, prepared, item, done)
    except _UNUSABLE as error:
        if is_out_of_memory(error):
            raise
        return f"this model does not run with it: {first_line(error)}"
    difference = disagreement(loaded.model, _plain(loaded, prepared, item), torch.stack([done.logits, written], dim=1))
    return f"a token after the prompt differs from a whole pass (KL {difference:.2g})" if difference else ""


def _one_more(loaded: LoadedModel, prepared: PreparedPrompts, item: PreparedBatch, done: Pass) -> torch.Tensor:
    """Logits [B, V] after one token more, which is the prompt's last one again."""
    token = item.batch.input_ids[:, -1:]
    mask, position = _longer(item.mask), item.batch.position_ids[:, -1:] + 1
    if prepared.cache == "none":
        return _plain(loaded, prepared, item)[:, 1]
    cache = done.own
    if prepared.cache == "blocks":
        width = item.mask.shape[1]
        cache, _ = decoding_cache([done.blocks], prepared.prefix, width, width + 1)
    return logits_of(loaded, token, mask, position, cache, keep=1)[:, -1]


def _plain(loaded: LoadedModel, prepared: PreparedPrompts, item: PreparedBatch) -> torch.Tensor:
    """Logits [B, 2, V] of the last position and after one token more, each row in a pass of its own, without a cache."""
    rows = []
    for index in item.batch.indices.tolist():
        own = prepared.prompts.ids[index]
        ids = torch.tensor([[*own, own[-1]]], device=loaded.device)
        positions = torch.arange(len(own) + 1, device=loaded.device)[None]
        rows.append(logits_of(loaded, ids, torch.ones_like(ids), positions, None, keep=2)[0])
    return torch.stack(rows)


def _longer(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
