"""Short passes over arbitrary tokens that tell whether a model just loaded is of use, and how it may be run.

Runs the model; changes nothing.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from bruno.engine.events import Emit, Fallback
from bruno.engine.model.architectures import decoder_config

_ROUNDING, _ROUGH_ROUNDING = 1e-5, 5e-2  # nats


def accepted(model: nn.Module, **inputs: object) -> dict[str, object]:
    """Those of the inputs that a model's forward names: some know no positions (ALiBi), some cannot skip logits."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def disagreement(model: PreTrainedModel, plain: torch.Tensor, other: torch.Tensor) -> float:
    """Largest KL(plain || other) of logits [..., V], in nats, where it is more than rounding explains; else 0.

    In half precision rounding now and then moves a token to another expert; 8-bit products depend on the rows beside them.
    """
    target = plain.float().log_softmax(-1)
    worst = float((target.exp() * (target - other.float().log_softmax(-1))).sum(-1).max())
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return 0.0 if worst < (_ROUNDING if exact else _ROUGH_ROUNDING) else worst  # NaN is disagreement


@torch.inference_mode()
def probe_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a short pass, [1, 16, V]: to compare the model with itself after something was done to it."""
    return model(input_ids=_tokens(model, 16), use_cache=False).logits


@torch.inference_mode()
def why_not_finite(model: PreTrainedModel) -> str:
    """Why the model is no use in its data type, "" when a short pass gives finite logits."""
    return "" if torch.isfinite(probe_logits(model)).all() else "its logits are not finite"


@torch.inference_mode()
def padding_is_harmless(model: PreTrainedModel, emit: Emit) -> bool:
    """Whether a row's logits are the same with padding before it; if not, prompts will run in batches of one length."""
    own, padding = 9, 15
    ids = _tokens(model, own + padding)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = model(**accepted(model, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False))
    alone = model(input_ids=ids[:, padding:], use_cache=False)
    difference = disagreement(model, alone.logits[:, -1], padded.logits[:, -1])
    if not difference:
        return True
    reason = f"this model's answers depend on padding (KL {difference:.2g})"
    emit(Fallback(method="Prompts of different lengths in one batch", reason=reason, instead="batches of one length"))
    return False


def _tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    """[1, count] different tokens that are no special ones in most vocabularies."""
    vocabulary = decoder_config(model).vocab_size
    return (5 + torch.arange(count, device=model.device)[None] * 7) % max(1, vocabulary - 8)
