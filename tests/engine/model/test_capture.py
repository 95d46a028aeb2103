"""Captures: the last real position of every block, whatever the batch looks like."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bruno.engine.directions.find import Samples, find_directions
from bruno.engine.events import OutOfMemory
from bruno.engine.model import capture as module
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.errors import BrunoError
from bruno.settings.engine import EngineSettings
from tests.engine.models import CONFIGS, VISION, loaded_model

PROMPTS = [f"question {i} " + "again " * (i % 5) for i in range(12)]


def change(residuals: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest change of a vector, as a share of its length (of 1, where it is shorter)."""
    return float(((residuals - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1)).max())


@pytest.mark.parametrize("kind", [*CONFIGS, *VISION])
def test_captures_equal_the_models_own_hidden_states(kind: str) -> None:
    loaded = loaded_model(kind)
    prompts = encode(loaded.tokenizer, PROMPTS[2:4])
    captured = capture(loaded, prompts, emit=lambda _: None)
    for row, ids in enumerate(prompts.ids):
        with torch.inference_mode():
            states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # the last of the library's states is behind the final norm
        expected = torch.stack([state[0, -1] for state in states[:-1]])
        assert change(captured[row, : loaded.layers], expected) < 5e-5


@pytest.mark.parametrize(
    ("kind", "rows"), [*((kind, 5) for kind in (*CONFIGS, *VISION)), ("llama", 1), ("qwen3_next", 1), ("gpt_oss", 12)]
)
def test_batch_size_order_and_padding_change_nothing(kind: str, rows: int) -> None:
    loaded = loaded_model(kind)
    loaded.tokenizer.padding_side = "right"
    prompts = encode(loaded.tokenizer, PROMPTS if rows == 12 or kind == "llama" else PROMPTS[:7])
    reversed_prompts = EncodedPrompts(prompts.ids[::-1], pad_id=7)
    reference = capture(loaded, prompts, emit=lambda _: None, rows=12)
    other = capture(loaded, reversed_prompts, emit=lambda _: None, rows=rows).flip(0)
    # the chunks of linear attention begin elsewhere behind padding, and round differently
    assert change(other, reference) < (5e-5 if kind.startswith(("qwen3_5", "qwen3_next")) else 1e-5)
    if kind not in ("llama", "gemma2", "gpt_neox"):  # random hybrids have blocks where the classes hardly differ
        return
    halves = [find_directions(Samples(c[::2], c[1::2]), EngineSettings()).vectors for c in (reference, other)]
    assert (halves[0] - halves[1]).abs().max() < 1e-5


def test_winsorising_is_applied_to_every_vector() -> None:
    loaded = loaded_model("llama")
    prompts = encode(loaded.tokenizer, PROMPTS)
    plain = capture(loaded, prompts, emit=lambda _: None)
    clamped = capture(loaded, prompts, emit=lambda _: None, winsorize_quantile=0.9)
    limit = clamped.abs().amax(-1, keepdim=True)
    assert (limit < plain.abs().amax(-1, keepdim=True)).all()
    assert torch.equal(clamped, plain.clamp(-limit, limit))


def test_out_of_memory_halves_the_batch_and_says_so() -> None:
    loaded = loaded_model("llama")
    sizes: list[int] = []

    def no_more_than_three(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.base_model.register_forward_pre_hook(no_more_than_three, with_kwargs=True)
    events: list = []
    captured = capture(loaded, encode(loaded.tokenizer, PROMPTS), emit=events.append, rows=12)
    assert events == [
        OutOfMemory(time=events[0].time, attempt=1, attempts=4),
        OutOfMemory(time=events[1].time, attempt=2, attempts=4),
    ]
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert torch.isfinite(captured).all()


def test_rows_are_as_many_as_memory_holds_and_no_more_than_usual(monkeypatch) -> None:
    loaded = loaded_model("llama")
    prompts = encode(loaded.tokenizer, PROMPTS)
    sizes: list[int] = []

    def count(_module: nn.Module, _args: tuple, kwargs: dict) -> None:
        sizes.append(len(kwargs["input_ids"]))

    loaded.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    longest = max(map(len, prompts.ids))
    row = longest * 4 * (3 * 80 + 12 * 48) + 4 * longest**2 + 8 * 5 * 48
    expected = {0: [1] * 12, 2 * 5 * row: [5, 5, 2], 10**12: [8, 4]}
    for free, batches in expected.items():
        monkeypatch.setattr(module, "free_memory", lambda _, free=free: free)
        sizes.clear()
        capture(loaded, prompts, emit=lambda _: None)
        assert sizes == batches


def test_a_long_capture_says_how_far_it_is(monkeypatch) -> None:
    loaded = loaded_model("llama")
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    events: list = []
    capture(loaded, encode(loaded.tokenizer, PROMPTS), emit=events.append, rows=2)
    assert [event.text for event in events] == [
        "Captured 4 of 12 prompts: 0.2 a second, 40s left",
        "Captured 8 of 12 prompts: 0.2 a second, 20s left",
    ]


def test_memory_that_holds_no_prompt_at_all_is_an_error() -> None:
    loaded = loaded_model("llama")

    def never(*_args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.base_model.register_forward_pre_hook(never)
    with pytest.raises(BrunoError, match="does not hold a single prompt"):
        capture(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None, rows=4)
