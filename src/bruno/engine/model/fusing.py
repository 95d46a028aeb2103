"""On a GPU: norms, rotary embeddings and gated activations by Liger's kernels, one launch each instead of ten.

Decoding moves few bytes beside the weights, so what a step costs beyond them is mostly launches. `liger-kernel` knows the
families; what it does to a loaded model is compared with the model as it was, and undone where it differs. Edits are not
touched: the hooks stay around the same modules. A checkpoint is never written from here.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from bruno.engine.edits.session import try_kernels
from bruno.engine.events import Emit, Fallback
from bruno.engine.model.architectures import Writer, find_mixtures
from bruno.engine.model.lean import Lean, make
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.model.probes import disagreement, probe_logits
from bruno.errors import first_line

_PARTS = {"rope": True, "rms_norm": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
_GATED = ("swiglu", "geglu")
_BOUND = ("forward", "extra_repr", "_get_name")  # what Liger puts on a module


def fuse(model: PreTrainedModel, writers: Sequence[Writer], emit: Emit) -> Lean | None:
    """Make a model on a GPU launch less; says so where it cannot. On a CPU nothing happens.

    Returns:
        Its lean blocks, for passes that want them, where its blocks are of that kind.
    """
    if model.device.type != "cuda":
        return None
    for method, reason in (("Fused edits", try_kernels(model.device)), ("Fused norms (Liger)", _liger(model, writers))):
        if reason:
            emit(Fallback(method=method, reason=reason, instead="torch's own operations"))
    lean, reason = _lean(model)
    if reason:
        emit(Fallback(method="Lean blocks", reason=reason, instead="the library's blocks"))
    return lean


def _lean(model: PreTrainedModel) -> tuple[Lean | None, str]:
    """Lean blocks by our kernels, or why there are none."""
    try:
        return make(model, importlib.import_module("bruno.engine.model.lean_kernels"))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None, f"{type(error).__name__}: {first_line(error)}"  # no Triton, no compiler, a device it does not know


def _liger(model: PreTrainedModel, writers: Sequence[Writer]) -> str:
    """Apply Liger's kernels; why they were not, or "" when they were."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (pip install 'bruno[gpu]')"
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it tells of every accelerator that is not there
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return f"it does not know {kind}"
    # fused experts are dispatched by the library's own names, which edits need
    gated = not find_mixtures(writers)
    before = probe_logits(model)
    code = sys.modules[type(model).__module__]
    names = dict(vars(code))
    bound = {module: [name for name in _BOUND if name in vars(module)] for module in model.modules()}
    try:
        _apply_liger_kernel_to_instance(model, **_PARTS, **dict.fromkeys(_GATED, gated))
        # Liger renames classes for models that are made later, on a CPU too perhaps; this model needs the function alone
        rotary = vars(code).get("apply_rotary_pos_emb")
        _restore(code, names)
        if rotary is not None:
            code.apply_rotary_pos_emb = rotary  # type: ignore[attr-defined]
        wrong = disagreement(model, before, probe_logits(model))
        reason = f"this model's answers differ with them (KL {wrong:.2g})" if wrong else ""
    except Exception as error:  # noqa: BLE001  (a compiler that is missing, a release that changed: each a reason)
        reason = f"{type(error).__name__}: {first_line(error)}"
    if reason:
        _restore(code, names)
        _unbind(bound)
    return reason


def _restore(code: object, names: dict[str, object]) -> None:
    for name, value in names.items():
        if vars(code).get(name) is not value:
            setattr(code, name, value)


def _unbind(bound: dict[nn.Module, list[str]]) -> None:
    for module, had in bound.items():
        for name in _BOUND:
            if name not in had:
                module.__dict__.pop(name, None)
    torch.cuda.empty_cache()
