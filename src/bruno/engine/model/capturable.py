"""Whether a model's answers may be written in fixed buffers and captured graphs: tried on real prompts, not assumed."""

from __future__ import annotations

import importlib
from dataclasses import replace
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
    reason = _forbids(loaded, prepared)
    if not reason and (kernel := _kernel(loaded)) is not None:
        reason = _try(loaded, prepared, kernel)
        if not reason:
            return True
        emit(Fallback(method="Attention that reads each key once", reason=reason, instead="the library's attention"))
        reason = ""
    reason = reason or _try(loaded, prepared, None)
    if reason and loaded.lean is not None and not loaded.lean.refused:
        loaded.lean.refused = True
        emit(Fallback(method="Lean blocks", reason=reason, instead="the library's blocks"))
        return usable(loaded, prepared, emit)
    if reason:
        emit(Fallback(method="Captured CUDA graphs", reason=reason, instead="steps launched one by one"))
    return not reason


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
