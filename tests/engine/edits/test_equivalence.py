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
INPUTS = {"input_ids": IDS, "attention_mask": LEFT_PADDED, "use_cache": False}
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
TOLERANCE = dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"), 4e-5)
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


@cache
@torch.inference_mode()
def base_logits(kind: str) -> torch.Tensor:
    return kept(kind).model(**INPUTS).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_hook_equals_bake(kind: str, mode: NormMode, method: str) -> None:
    loaded, base, close = kept(kind), base_logits(kind), TOLERANCE.get(kind, 1e-5)
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    batch = build_edits(TRIALS, directions, loaded.writers, replace(METHODS[method], norm_mode=mode))
    with EditSession(loaded.writers, max_trials=3) as session:
        session.write(batch)
        session.rows(torch.tensor([0, 1]))
        hooked = loaded.model(**INPUTS).logits
    for trial in range(2):
        own = {name: value[trial : trial + 1] if name != "use_cache" else value for name, value in INPUTS.items()}
        with weights_put_back(loaded):
            bake_into(loaded, batch, trial)
            baked = loaded.model(**own).logits[0]
        seen = LEFT_PADDED[trial].bool()
        scale = baked[seen].abs().max().clamp_min(1.0)
        assert (baked[seen] - hooked[trial, seen]).abs().max() / scale < close
        assert (base[trial, seen] - hooked[trial, seen]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_session_changes_nothing_before_an_edit_and_after_it(kind: str) -> None:
    loaded, base = kept(kind), base_logits(kind)
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    with EditSession(loaded.writers, max_trials=3) as session:
        assert torch.equal(loaded.model(**INPUTS).logits, base)  # to the bit
        session.write(build_edits(TRIALS, directions, loaded.writers, METHODS["all"]))
        session.rows(torch.tensor([1, 1]))
        one = loaded.model(**INPUTS).logits
        session.rows(torch.tensor([0, 1]))
        two = loaded.model(**INPUTS).logits
        seen = LEFT_PADDED[1].bool()
        assert (one[1, seen] - two[1, seen]).abs().max() < 2e-4  # all rows of one trial: broadcast instead of gathered
    assert torch.equal(loaded.model(**INPUTS).logits, base)
