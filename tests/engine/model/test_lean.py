"""Lean blocks: the numbers of the library's blocks for the families that have such, with and without edits, and none for
others. The GPU's kernels against plain torch are in `test_lean_kernels.py`."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from bruno.engine.edits.build import EditRules, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Fallback
from bruno.engine.model import capturable, lean_torch
from bruno.engine.model.chat_format import encode
from bruno.engine.model.generate import answer_logprobs, first_token_logprobs, generate, prepare
from bruno.engine.model.lean import Lean, make
from bruno.engine.model.loading import LoadedModel
from tests.engine.edits.test_build import random_directions
from tests.engine.edits.test_equivalence import METHODS, TRIALS
from tests.engine.model.test_generate import PROMPTS, edits_for, plain_answers
from tests.engine.models import CONFIGS, VISION, loaded_model, tiny_model

LEAN = ["llama", "mistral", "qwen2", "qwen3", "ministral3", "mistral3", "llava", "qwen2_vl", "qwen2_5_vl"]


def with_lean(loaded: LoadedModel) -> tuple[LoadedModel, Lean]:
    lean, why = make(loaded.model, lean_torch)
    assert lean is not None, why
    return replace(loaded, lean=lean), lean


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that ran lean, one after the other."""
    seen: list[int] = []
    plain = Lean._forward

    def counted(self: Lean, index: int, *given: object, **named: object) -> torch.Tensor:
        seen.append(index)
        return plain(self, index, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Lean, "_forward", counted)
    return seen


@pytest.mark.parametrize("kind", [*CONFIGS, *VISION])
def test_only_blocks_of_the_kind_are_replaced(kind: str) -> None:
    lean, why = make(tiny_model(kind), lean_torch)
    assert (lean is not None) == (kind in LEAN) == (why == "")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("granite", {"residual_multiplier": 0.9}),
        ("llama", {"quantised": True}),
        ("llama", {"spread": True}),
        ("llama", {"broken": True}),
    ],
    ids=[
        "another activation",
        "a residual multiplier",
        "packed weights",
        "two devices",
        "a block that gives no number",
    ],
)
def test_what_is_built_otherwise_is_left_alone(kind: str, changes: dict) -> None:
    odd = {name for name in ("quantised", "spread", "broken") if name in changes}
    model = tiny_model(kind, **{name: value for name, value in changes.items() if name not in odd})
    if "broken" in odd:
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    if "quantised" in odd:
        model.model.layers[1].mlp.up_proj.__class__ = type("Packed", (torch.nn.Linear,), {})
    if "spread" in odd:
        model.hf_device_map = {"a": 0, "b": 1}
    lean, why = make(model, lean_torch)
    assert lean is None
    assert why


@pytest.mark.parametrize("kind", LEAN)
@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
def test_the_same_tokens_and_scores_as_the_librarys_blocks(kind: str, fixed: bool, passes: list[int]) -> None:
    """For the base model and three trials, in a cache that grows and in fixed buffers."""
    plain = loaded_model(kind)
    prompts = encode(plain.tokenizer, PROMPTS)
    answers = [[5 + i, 9, 11][: 1 + i % 3] for i in range(len(PROMPTS))]
    found = []
    for lean in (False, True):
        loaded = with_lean(plain)[0] if lean else plain
        passes.clear()
        events: list = []
        prepared = replace(prepare(loaded, prompts, emit=events.append, rows=4), graphs=fixed)
        assert events == []
        assert prepared.reuse
        with EditSession(loaded.writers, max_trials=4) as session:
            base = generate(loaded, prepared, max_new_tokens=6).ids
            session.write(edits_for(loaded))
            edited = generate(loaded, prepared, max_new_tokens=6, session=session).ids
            first = first_token_logprobs(loaded, prepared, session=session)
            several, _ = answer_logprobs(loaded, prepared, answers, session=session)
        assert set(passes) == (set(range(loaded.layers)) if lean else set())
        found.append((base, edited, first, several))
    assert found[0][:2] == found[1][:2]
    assert found[1][0] == [plain_answers(plain, prompts, 6)]
    for ours, theirs in zip(found[1][2:], found[0][2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("mode", ["none", "column", "row", "frobenius"])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_edit_is_applied(method: str, mode: str, passes: list[int]) -> None:
    """Those of heads by way of the hooks, all others in the blocks."""
    plain = loaded_model("qwen2")
    prompts = encode(plain.tokenizer, PROMPTS)
    loaded, _ = with_lean(plain)
    prepared = prepare(loaded, prompts, emit=lambda _: None)
    directions = random_directions(loaded.layers, loaded.hidden_size)
    rules: EditRules = replace(METHODS[method], norm_mode=mode)  # type: ignore[arg-type]
    batch = build_edits(TRIALS, directions, loaded.writers, rules)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(batch)
        ours = first_token_logprobs(loaded, prepared, session=session)
        theirs = first_token_logprobs(plain, prepare(plain, prompts, emit=lambda _: None), session=session)
        base = first_token_logprobs(loaded, prepared)
    assert passes
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    assert (ours - base).abs().max() > 1e-3


def test_nothing_else_of_the_model_changes(passes: list[int]) -> None:
    """Weights keep their names and values, passes outside of `on` are the library's, and no forward stays behind."""
    model = tiny_model("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(5, 14)[None]
    expected = model(ids).logits
    lean, _ = make(model, lean_torch)
    assert lean is not None
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    attention = model.model.layers[0].self_attn
    storages = {getattr(attention, f"{name}_proj").weight.untyped_storage().data_ptr() for name in "qkv"}
    assert len(storages) == 1  # side by side, not once more
    assert not any(parameter.is_inference() for parameter in model.parameters())
    passes.clear()
    with lean.on(None):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)
    assert passes == list(range(4))
    assert torch.equal(model(ids).logits, expected)
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_a_whole_pass_that_differs_turns_them_off_and_says_so() -> None:
    plain = loaded_model("llama")
    loaded, lean = with_lean(plain)
    lean._parts[1] = replace(lean._parts[1], before=lean_torch.Norm(2 * lean._parts[1].before.gain, 1e-6))
    events: list = []
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=events.append)
    assert [event.method for event in events if isinstance(event, Fallback)] == ["Lean blocks"]
    assert lean.refused
    assert prepared.reuse
    answers = generate(loaded, prepared, max_new_tokens=4)
    assert answers == generate(plain, prepare(plain, prepared.prompts, emit=lambda _: None), max_new_tokens=4)


KERNEL = ModuleType("attention")
ATTENTION, BLOCKS = "Attention that reads each key once", "Lean blocks"


@pytest.mark.parametrize(
    ("works", "told", "stays_lean"),
    [
        ({(True, True)}, [], True),
        ({(True, False), (False, True)}, [ATTENTION], True),
        ({(False, True), (False, False)}, [BLOCKS], False),
        ({(False, False)}, [ATTENTION, BLOCKS], False),
        (set(), None, True),
    ],
    ids=["both", "no kernel", "no lean blocks", "neither", "no captured steps at all"],
)
def test_only_what_does_not_work_is_given_up(
    works: set, told: list[str] | None, stays_lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`works` holds (lean blocks, our attention)."""
    loaded, lean = with_lean(loaded_model("llama"))
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None)
    tried: list = []

    def attempt(_loaded: LoadedModel, _prepared: object, attention: ModuleType | None) -> str:
        tried.append((not lean.refused, attention is not None))
        return "" if tried[-1] in works else "it differs"

    monkeypatch.setattr(capturable, "_try", attempt)
    monkeypatch.setattr(capturable, "_kernel", lambda _: KERNEL)
    events: list = []
    reason = capturable._fastest(loaded, prepared, events.append)
    assert [event.method for event in events] == (told or [])
    assert (reason == "") == (told is not None)
    assert lean.refused is not stays_lean
    assert len(tried) == len(set(tried))
