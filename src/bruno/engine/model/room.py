"""How much is worth doing together in the memory that is free: rows of one wave, trials of one batch."""

from __future__ import annotations

from bruno.engine.model.architectures import decoder_config
from bruno.engine.model.graphs import capacity_of
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import free_memory
from bruno.engine.model.prepared import PreparedPrompts

_MOST = 1024  # rows of one wave
_SPARE = 2 * 2**30  # bytes left for what a step computes in between
_TOGETHER = 8  # trials: more are drawn with less knowledge of each other than they save time
_PROMPT = 64  # tokens of a usual prompt


def room(loaded: LoadedModel, prepared: PreparedPrompts, longest: int) -> int:
    """How many rows can be written together in the memory that is free."""
    if not prepared.batches:
        return _MOST
    by_position = sum(t.nbytes / (t.shape[0] * t.shape[2]) for b in prepared.batches[0].blocks for t in b.positions)
    width = max(item.mask.shape[1] for item in prepared.batches)
    one_pass = max(len(item.batch.indices) * item.mask.shape[1] for item in prepared.batches) * by_position
    buffers = loaded.workspace.buffers
    free = free_memory(loaded.device) + (buffers.bytes() if buffers is not None else 0)
    return max(1, min(_MOST, int((free - _SPARE - one_pass) / (capacity_of(width + longest) * by_position))))


def trials_that_fit(loaded: LoadedModel, prompts: int, longest: int) -> int:
    """How many trials are worth evaluating together: on a GPU up to `_TOGETHER`, as many as half of the free memory holds
    the answers of; one on a CPU."""
    if loaded.device.type != "cuda":
        return 1
    config = decoder_config(loaded.model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    by_position = 2 * loaded.layers * heads * size * loaded.dtype.itemsize
    trial = by_position * prompts * (_PROMPT + longest)
    return max(1, min(_TOGETHER, int(free_memory(loaded.device) / 2 / trial)))
