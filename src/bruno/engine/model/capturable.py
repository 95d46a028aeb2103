"""Whether a model's answers may be written in fixed buffers and captured graphs: tried on real prompts, not assumed."""

from __future__ import annotations

import importlib
from dataclasses import replace
from itertools import product
from types import ModuleType

import torch

from bruno.engine.events import Emit, Fallback
from bruno.engine.model.architectures import decoder_config
from bruno.engine.model.decoding import Started
from bruno.engine.model.graphs import GraphedRows
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.model.passes import logits_of
from bruno.engine.model.prefill import trial_pass
from bruno.engine.model.prepared import PreparedPrompts
from bruno.errors import first_line

_TRIED = 6  # tokens that are written


@torch.inference_mode()
def usable(loaded: LoadedModel, prepared: PreparedPrompts, emit: Emit) -> bool:
    """Whether answers to these prompts can be written in fixed buffers: tried on a few of them, against whole passes.

    False without an event where there is nothing to gain (no GPU), with one where this model or its placing forbids it.
    """
    if loaded.device.type != "cuda" or prepared.cache != "blocks" or not prepared.reuse or not prepared.batches:
        return False
    reason = _forbids(loaded, prepared) or _fastest(loaded, prepared, emit)
    if reason:
        emit(Fallback(method="Captured CUDA graphs", reason=reason, instead="steps launched one by one"))
    return not reason


def _fastest(loaded: LoadedModel, prepared: PreparedPrompts, emit: Emit) -> str:
    """Settle on the first way of writing that works: with lean blocks and our own attention, with one of them, with
    neither; what is given up is told with why. Why none does, or ""; lean blocks then stay, for prompts."""
    lean, kernel = loaded.lean, _kernel(loaded)
    leans = [True, False] if lean is not None and not lean.refused else [False]
    kernels = [kernel, None] if kernel is not None else [None]
    reasons = []
    for wanted, attention in product(leans, kernels):
        if lean is not None:
            lean.refused = not wanted
        reasons.append(_try(loaded, prepared, attention))
        if reasons[-1]:
            continue
        if attention is not kernel:
            emit(
                Fallback(
                    method="Attention that reads each key once", reason=reasons[0], instead="the library's attention"
                )
            )
        if wanted is not leans[0]:
            emit(Fallback(method="Lean blocks", reason=reasons[0], instead="the library's blocks"))
        return ""
    if lean is not None:
        lean.refused = not leans[0]
    return reasons[-1]


def _forbids(loaded: LoadedModel, prepared: PreparedPrompts) -> str:
    """Why fixed buffers cannot be tried at all, or ""."""
    if len(set(getattr(loaded.model, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    if any(block.summary for block in prepared.batches[0].blocks):
        return "some blocks keep a running state"
    return ""


def _kernel(loaded: LoadedModel) -> ModuleType | None:
    """Our own attention for single tokens, where the model attends by `sdpa` and Triton is there."""
    if decoder_config(loaded.model)._attn_implementation != "sdpa":
        return None
    try:
        return importlib.import_module("bruno.engine.model.attention")
    except ImportError:
        return None


def _try(loaded: LoadedModel, prepared: PreparedPrompts, attention: ModuleType | None) -> str:
    """Why answers cannot be written with this attention, or "" when they can, and are from now on."""
    workspace = loaded.workspace
    workspace.release()
    workspace.attention, workspace.refused = (attention.NAME if attention is not None else ""), ""
    if loaded.lean is not None:
        loaded.lean.single = attention.grouped if attention is not None else None
    try:
        return wrong_token(loaded, prepared) or workspace.refused
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"this model does not run with it: {first_line(error)}"


def wrong_token(loaded: LoadedModel, prepared: PreparedPrompts) -> str:
    """Write a few tokens in the buffers and read them with whole passes; what is wrong with them, or ""."""
    item = prepared.batches[0].rows(slice(0, 4))
    some = replace(prepared, batches=[item])
    started = Started([0], item, lambda: trial_pass(loaded, some, item, [prepared.prefix_blocks], None, [0]))
    written: dict[int, list[int]] = {int(i): [] for i in item.batch.indices}
    with loaded.running(None):
        decoding = GraphedRows(loaded, some, [started], _TRIED, None)
        for turn in range(2):
            for _, prompt, tokens in decoding.tokens():
                written[prompt] += tokens
            if turn == 0:
                decoding.step()
    for prompt, answer in written.items():
        ids = torch.tensor([[*prepared.prompts.ids[prompt], *answer[:-1]]], device=loaded.device)
        positions = torch.arange(ids.shape[1], device=loaded.device)[None]
        logits = logits_of(loaded, ids, torch.ones_like(ids), positions, None, keep=len(answer))[0].float()
        chosen = logits.gather(1, torch.tensor(answer, device=loaded.device)[:, None])[:, 0]
        short = (logits.max(-1).values - chosen).max().item()
        # a tie within rounding may fall either way
        if not short <= (0.25 if loaded.dtype.itemsize < 4 else 1e-3):
            return f"a token lies {short:.2g} below the one that a whole pass writes"
    return ""
