"""Hook equals bake: what a search runs is what an export writes, for every family, norm mode and method of editing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

from bruno.engine.edits.algebra import NormMode
from bruno.engine.edits.build import EditRules, Kernel, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import ATTENTION, MLP, find_writers
from bruno.engine.model.loading import LoadedModel
from tests.engine.edits.test_build import MODES, with_compliance
from tests.engine.models import CONFIGS, VISION, bake_into, experts_as_modules, loaded_model

IDS = torch.arange(3, 43).view(2, 20)
LEFT_PADDED = torch.tensor([[0] * 4 + [1] * 16, [1] * 20])
TRIALS = (
    TrialEdit("global", 1.6, {ATTENTION: Kernel(1.2, 2, 0.3, 2), MLP: Kernel(0.8, 2.5, 0.2, 1.5)}, further=0.5),
    TrialEdit("per layer", None, {ATTENTION: Kernel(1.0, 3, 0.5, 1), MLP: Kernel(1.1, 1, 0.5, 2)}),
)
METHODS = {
    "plain": EditRules(),
    "all": EditRules(
        layer_profile=(0.8, 1.2, 0.9),
        compliance_strength=0.4,
        heads={0: (1,), 2: (0, 3), 3: (2,)},
        experts={0: (0, 2), 1: (1, 2, 3), 3: (0, 1, 2, 3)},
        router=0.7,
    ),
}
# Changing the weights of the tiny gated delta nets by one unit in the last place moves their logits by up to 1.6e-5
# of the largest one (llama: 1e-6): recurrence over 20 tokens. The edit itself is as exact there as elsewhere.
TOLERANCE = {"qwen3_next": 4e-5, "qwen3_5_text": 4e-5, "qwen3_5_moe_text": 4e-5}
KINDS = [*CONFIGS, *VISION, "deepseek_v3 with modules"]


@cache
def kept(kind: str) -> LoadedModel:
    """One model of each kind; whoever changes its weights puts them back."""
    loaded = loaded_model(kind.removesuffix(" with modules"))
    if kind.endswith("with modules"):
        experts_as_modules(loaded.model)
        loaded = replace(loaded, writers=find_writers(loaded.model))
    return loaded


@contextmanager
def weights_put_back(loaded: LoadedModel) -> Iterator[None]:
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    try:
        yield
    finally:
        with torch.inference_mode():
            for name, parameter in loaded.model.named_parameters():
                parameter.copy_(before[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_hook_equals_bake(kind: str, mode: NormMode, method: str) -> None:
    loaded = kept(kind)
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    rules = replace(METHODS[method], norm_mode=mode)
    batch = build_edits(TRIALS, directions, loaded.writers, rules)
    inputs = {"input_ids": IDS, "attention_mask": LEFT_PADDED, "use_cache": False}
    with torch.inference_mode():
        base = loaded.model(**inputs).logits
        with EditSession(loaded.writers, max_trials=3) as session:
            assert torch.equal(loaded.model(**inputs).logits, base)  # nothing active: the base model to the bit
            session.write(batch)
            session.rows(torch.tensor([0, 1]))
            hooked = loaded.model(**inputs).logits
            session.rows_of(1)
            whole = loaded.model(**inputs).logits
        assert torch.equal(loaded.model(**inputs).logits, base)  # leaving the session leaves nothing
        for trial in range(2):
            with weights_put_back(loaded):
                bake_into(loaded, batch, trial)
                baked = loaded.model(**inputs).logits
            seen = LEFT_PADDED[trial].bool()
            scale = baked[trial, seen].abs().max().clamp_min(1.0)
            assert (baked[trial, seen] - hooked[trial, seen]).abs().max() / scale < TOLERANCE.get(kind, 1e-5)
            assert (base[trial, seen] - hooked[trial, seen]).abs().max() > 1e-2
        assert (baked[LEFT_PADDED.bool()] - whole[LEFT_PADDED.bool()]).abs().max() / scale < TOLERANCE.get(kind, 1e-5)
