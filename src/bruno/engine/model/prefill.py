"""What trials share, computed once: the prompts' states in the base model, and passes that begin where a trial first edits.

Three things are never computed twice. The tokens that all prompts begin with (chat template, system text) are one row,
not N. Blocks below a trial's first edited one see what the base model sees, so a trial's pass starts from the base
model's kept states there. And the base model's own first answer token is kept with them.

Runs the model; keeps tensors on its device. Where a model does not allow this (checked on real prompts, not assumed),
or memory is short, every prompt is computed whole instead, and an event says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn
from transformers import DynamicCache

from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit, Fallback
from bruno.engine.model.architectures import decoder_config, find_blocks
from bruno.engine.model.chat_format import Batch, EncodedPrompts
from bruno.engine.model.loading import LoadedModel, first_line
from bruno.engine.model.memory import halving, is_out_of_memory

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""For each block, keys and values [B, heads, S, head_dim]."""

_KEPT_STATES = 16  # blocks whose inputs are kept; a pass starts at most L / 16 blocks too low
_MEMORY_SHARE = 0.25  # of what is free, for kept states
_LONGEST_ANSWER = 4096  # tokens; see `_usable_prefix`


@dataclass(frozen=True)
class PreparedBatch:
    """Some of the prompts, without the shared prefix, as the base model sees them.

    Attributes:
        batch: their own tokens, left-padded, [B, S].
        mask: [B, P + S], the prefix in front.
        logits: [B, V] of the first answer token.
        states: block index to its input [B, S, d]; empty when states are not kept.
        keys_values: of all blocks, own positions only; empty when states are not kept.
    """

    batch: Batch
    mask: torch.Tensor
    logits: torch.Tensor
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    keys_values: KeysValues = field(default_factory=list)

    def rows(self, part: slice) -> PreparedBatch:
        """Some of the rows, as views."""
        return PreparedBatch(
            batch=Batch(*(getattr(self.batch, name)[part] for name in Batch.__dataclass_fields__)),
            mask=self.mask[part],
            logits=self.logits[part],
            states={block: state[part] for block, state in self.states.items()},
            keys_values=[(keys[part], values[part]) for keys, values in self.keys_values],
        )


@dataclass(frozen=True)
class PreparedPrompts:
    """Prompts with what the base model computes for them once and every trial reuses. Made by `prepare`.

    Attributes:
        prompts: all N, whole.
        prefix: length P of the shared prefix, 0 when nothing is shared.
        prefix_states, prefix_keys_values: as in `PreparedBatch`, for the prefix as one row.
        batches: the prompts' own parts, by similar length.
        layers: number of decoder blocks L.
        reuse: whether states are kept.
    """

    prompts: EncodedPrompts
    layers: int
    prefix: int
    prefix_states: dict[int, torch.Tensor]
    prefix_keys_values: KeysValues
    batches: list[PreparedBatch]
    reuse: bool

    def start(self, first_layer: int) -> int:
        """The highest block, at most `first_layer`, that a pass can start at; L when the base model's pass will do."""
        if not self.reuse or not self.batches or first_layer >= self.layers:
            return self.layers if self.reuse else 0
        return max((block for block in self.batches[0].states if block <= first_layer), default=0)

    def pieces(self, rows: int) -> Iterator[PreparedBatch]:
        """The batches, cut where they have more than `rows` rows (0: as they are)."""
        for item in self.batches:
            count = len(item.batch.indices)
            if not rows or count <= rows:
                yield item
            else:
                yield from (item.rows(slice(begin, begin + rows)) for begin in range(0, count, rows))


@dataclass(frozen=True)
class Pass:
    """What a pass over a `PreparedBatch` gives: the first answer token's logits [B, V]; keys and values of P + S positions."""

    logits: torch.Tensor
    keys_values: KeysValues


def prepare(loaded: LoadedModel, prompts: EncodedPrompts, *, emit: Emit, rows: int = 0) -> PreparedPrompts:
    """Do the base model's share of the work once. Call outside a session, or with the session off.

    Args:
        rows: prompts in one pass; 0 lets the engine choose. Out of memory halves it, and says so.
    """
    reason = _why_not_reuse(loaded, prompts)
    prefix = 0 if reason else _usable_prefix(loaded, prompts)

    def attempt(size: int) -> PreparedPrompts:
        return _prepare(loaded, prompts, size, prefix, reuse=not reason)

    prepared = halving(attempt, rows or loaded.default_rows, emit)
    if not reason and prepared.batches:
        reason = _check_reuse(loaded, prepared)
    if reason:
        emit(Fallback(method="Reuse of the base model's states", reason=reason, instead="whole passes for every trial"))
        prefix = 0
        prepared = halving(
            lambda size: _prepare(loaded, prompts, size, 0, reuse=False), rows or loaded.default_rows, emit
        )
    return prepared


def prefix_of_trials(loaded: LoadedModel, prepared: PreparedPrompts, session: EditSession | None) -> list[KeysValues]:
    """The shared prefix as each trial sees it, in one pass: for each trial, keys and values of one row."""
    base = prepared.prefix_keys_values
    if session is None or not session.trials or not prepared.prefix:
        return [base] * max(1, session.trials if session else 0)
    trials = session.trials
    start = prepared.start(min(session.first_layer))
    if start >= loaded.layers:
        return [base] * trials
    session.rows(torch.arange(trials))
    device = loaded.device
    ids = torch.tensor([prepared.prompts.ids[0][: prepared.prefix]], device=device).expand(trials, -1)
    mask = torch.ones_like(ids)
    state = prepared.prefix_states[start].expand(trials, -1, -1) if start else None
    cache = DynamicCache()
    positions = torch.arange(prepared.prefix, device=device).expand(trials, -1)
    _forward(loaded, Batch(torch.arange(trials), ids, mask, positions), mask, cache, start, state)
    own = _held(cache, start)
    return [[*base[:start], *((k[t : t + 1], v[t : t + 1]) for k, v in own)] for t in range(trials)]


def trial_pass(
    loaded: LoadedModel,
    prepared: PreparedPrompts,
    item: PreparedBatch,
    prefix: KeysValues,
    session: EditSession | None,
    trial: int,
) -> Pass:
    """One trial's pass over some of the prompts, from the first block that it edits."""
    if session and session.trials:
        session.rows_of(trial)
        start = prepared.start(session.first_layer[trial])
    else:
        start = prepared.start(loaded.layers)
    rows = len(item.batch.indices)
    below = _joined(prepared.prefix_keys_values, item.keys_values, rows)
    if start >= loaded.layers and prepared.reuse:
        return Pass(item.logits, below)
    cache = _cache_of(prefix, rows)
    logits = _forward(loaded, item.batch, item.mask, cache, start, item.states.get(start))
    return Pass(logits, [*below[:start], *_held(cache, start)])


def _why_not_reuse(loaded: LoadedModel, prompts: EncodedPrompts) -> str:
    """Why states cannot be kept for these prompts; "" when they can."""
    config = decoder_config(loaded.model)
    tokens = sum(map(len, prompts.ids))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    states = min(loaded.layers, 2 * _KEPT_STATES) * config.hidden_size
    size = tokens * (2 * loaded.layers * heads * head_size + states) * loaded.dtype.itemsize
    free = (
        torch.cuda.mem_get_info(loaded.device)[0] if loaded.device.type == "cuda" else psutil.virtual_memory().available
    )
    if size > _MEMORY_SHARE * free:
        return f"{size / 2**30:.1f} GiB of states do not fit beside the model, {free / 2**30:.1f} GiB are free"
    return ""


def _usable_prefix(loaded: LoadedModel, prompts: EncodedPrompts) -> int:
    """Length of the shared prefix; 0 for one too short to pay, or where a sliding window could see the gap behind it.

    Rows are laid out prefix, padding, own tokens. Full attention masks the padding; a window counts it as distance.
    """
    prefix = prompts.shared_prefix()
    config = decoder_config(loaded.model)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if windowed else None
    longest = max(map(len, prompts.ids), default=0)
    return 0 if prefix < 4 or (window and longest + _LONGEST_ANSWER > window) else prefix


@torch.inference_mode()
def _prepare(loaded: LoadedModel, prompts: EncodedPrompts, rows: int, prefix: int, *, reuse: bool) -> PreparedPrompts:
    stride = max(1, loaded.layers // _KEPT_STATES)
    kept = range(stride, loaded.layers, stride) if reuse else range(0)
    prefix_states: dict[int, torch.Tensor] = {}
    prefix_keys_values: KeysValues = []
    if prefix:
        ids = torch.tensor([prompts.ids[0][:prefix]], device=loaded.device)
        positions = torch.arange(prefix, device=loaded.device)[None]
        cache = DynamicCache()
        with _keeping_states(loaded, kept) as prefix_states:
            _forward(loaded, Batch(torch.zeros(1), ids, torch.ones_like(ids), positions), torch.ones_like(ids), cache)
        prefix_keys_values = _held(cache)
    batches = []
    for batch in prompts.batches(rows, loaded.device, start=prefix):
        mask = torch.cat([batch.attention_mask.new_ones(len(batch.indices), prefix), batch.attention_mask], dim=1)
        cache = _cache_of(prefix_keys_values, len(batch.indices))
        with _keeping_states(loaded, kept) as states:
            logits = _forward(loaded, batch, mask, cache)
        own = [(k[:, :, prefix:], v[:, :, prefix:]) for k, v in _held(cache)] if reuse else []
        batches.append(PreparedBatch(batch, mask, logits, states, [(k.contiguous(), v.contiguous()) for k, v in own]))
    return PreparedPrompts(prompts, loaded.layers, prefix, prefix_states, prefix_keys_values, batches, reuse)


@torch.inference_mode()
def _check_reuse(loaded: LoadedModel, prepared: PreparedPrompts) -> str:
    """Compare a pass from the middle with a plain one on a few real prompts; why reuse is unsafe, or ""."""
    item = prepared.batches[0].rows(slice(0, 4))
    start = prepared.start(loaded.layers // 2)
    indices = item.batch.indices.tolist()
    chosen = EncodedPrompts(tuple(prepared.prompts.ids[i] for i in indices), prepared.prompts.pad_id)
    try:
        cache = _cache_of(prepared.prefix_keys_values, len(indices))
        resumed = _forward(loaded, item.batch, item.mask, cache, start, item.states.get(start))
        (whole,) = chosen.batches(len(indices), loaded.device)
        plain = torch.empty_like(resumed)
        plain[whole.indices] = _forward(loaded, whole, whole.attention_mask, DynamicCache())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return f"this model's blocks cannot be entered in the middle: {first_line(error)}"
    target = plain.float().log_softmax(-1)
    difference = (target.exp() * (target - resumed.float().log_softmax(-1))).sum(-1).max()
    limit = 1e-5 if loaded.dtype == torch.float32 else 2e-2
    return "" if difference < limit else f"a pass from the middle differs from a whole one (KL {difference:.2g})"


def _forward(
    loaded: LoadedModel,
    batch: Batch,
    mask: torch.Tensor,
    cache: DynamicCache,
    start: int = 0,
    state: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model on a batch, from block `start` on with the given input there: logits of the last position, [B, V]."""
    with _starting_at(find_blocks(loaded.model), start, state):
        output = loaded.model(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.position_ids,
            past_key_values=cache,
            use_cache=True,
            # as an index, not as the number 1: that makes a strided view, for which a CPU copies the head once a row
            logits_to_keep=torch.tensor([batch.input_ids.shape[1] - 1], device=batch.input_ids.device),
        )
    return output.logits[:, -1]


def _cache_of(keys_values: KeysValues, rows: int) -> DynamicCache:
    """A cache that holds one row's keys and values for each of `rows` rows; empty when there are none."""
    if not keys_values:
        return DynamicCache()
    return DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in keys_values])


def _held(cache: DynamicCache, start: int = 0) -> KeysValues:
    """What a cache holds for the blocks from `start` on. (Below it, a pass that began there may have left nothing.)"""
    return [(keys, values) for keys, values, _ in list(cache)[start:] if keys is not None and values is not None]


def _joined(prefix: KeysValues, own: KeysValues, rows: int) -> KeysValues:
    """Keys and values of the prefix (one row) and of the rows' own positions, one after the other."""
    if not prefix:
        return own
    return [
        (torch.cat([pk.expand(rows, -1, -1, -1), k], dim=2), torch.cat([pv.expand(rows, -1, -1, -1), v], dim=2))
        for (pk, pv), (k, v) in zip(prefix, own, strict=True)
    ]


@contextmanager
def _keeping_states(loaded: LoadedModel, blocks: range) -> Iterator[dict[int, torch.Tensor]]:
    """Collects the inputs of the given blocks during a pass."""
    states: dict[int, torch.Tensor] = {}

    def keep(index: int):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            states[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    modules = find_blocks(loaded.model)
    handles = [modules[i].register_forward_pre_hook(keep(i), with_kwargs=True) for i in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _starting_at(blocks: nn.ModuleList, start: int, state: torch.Tensor | None) -> Iterator[None]:
    """Blocks below `start` hand their input on, and block `start` gets `state` instead of what they hand it."""
    if start == 0 or state is None:
        yield
        return

    def replace(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    def hand_on(hidden_states: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
        return hidden_states

    handle = blocks[start].register_forward_pre_hook(replace, with_kwargs=True)
    own = [block.__dict__.get("forward") for block in blocks[:start]]
    for block in blocks[:start]:
        block.forward = hand_on
    try:
        yield
    finally:
        handle.remove()
        for block, forward in zip(blocks[:start], own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
