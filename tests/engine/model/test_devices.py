"""Placement over several devices: the fullest as empty as it can be, embeddings first, head last, nothing forgotten."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import decoder_config
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import encode
from bruno.engine.model.devices import device_map, devices_for, shares
from bruno.engine.model.generate import generate, prepare
from tests.engine.model.test_generate import PROMPTS, edits_for
from tests.engine.models import loaded_model, tiny_model

GPUS = [torch.device("cuda", index) for index in range(4)]


def largest(sizes: list[int], first: int, last: int, placed: list[int]) -> int:
    loads = [0] * (max(placed) + 1)
    loads[0] += first
    loads[-1] += last
    for size, place in zip(sizes, placed, strict=True):
        loads[place] += size
    return max(loads)


@pytest.mark.parametrize(
    ("sizes", "first", "last", "devices", "expected"),
    [
        ([10] * 8, 0, 0, 2, [0, 0, 0, 0, 1, 1, 1, 1]),
        ([10] * 8, 20, 20, 4, [0, 1, 1, 1, 2, 2, 2, 3]),
        ([10] * 8, 40, 0, 2, [0, 0, 1, 1, 1, 1, 1, 1]),
        ([10] * 3, 5, 5, 8, [0, 1, 2]),
        ([10] * 3, 5, 5, 1, [0, 0, 0]),
        ([30, 10, 10, 10], 0, 0, 2, [0, 1, 1, 1]),  # a dense first block beside small ones
    ],
)
def test_blocks_are_dealt_out_by_weight(
    sizes: list[int], first: int, last: int, devices: int, expected: list[int]
) -> None:
    placed = shares(sizes, first, last, devices)
    assert placed == sorted(placed)
    assert largest(sizes, first, last, placed) == largest(sizes, first, last, expected)
    assert len(set(placed)) == len(set(expected))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(0, 60), st.integers(0, 60), st.integers(1, 4))
def test_no_other_order_has_a_smaller_largest_load(sizes: list[int], first: int, last: int, devices: int) -> None:
    placed = shares(sizes, first, last, devices)
    used = min(devices, len(sizes))
    every = [list(p) for p in combinations_with_replacement(range(used), len(sizes)) if set(p) == set(range(used))]
    assert placed in every
    assert largest(sizes, first, last, placed) == min(largest(sizes, first, last, each) for each in every)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "deepseek_v3", "qwen3_5_text", "gemma3", "qwen2_5_vl"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_map_covers_every_parameter_once_and_puts_the_ends_where_they_belong(kind: str, tied: bool) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    places = device_map(model, GPUS, lambda _, each: each.nbytes)
    head = model.get_output_embeddings()
    assert head is not None
    assert tied == (model.get_input_embeddings().weight is head.weight)
    for name, _ in model.named_parameters():
        assert sum(name == key or name.startswith(f"{key}.") for key in places) == 1, name
    prefix = next(key.rsplit(".", 1)[0] for key in places if key.endswith(".0"))
    blocks = [places[f"{prefix}.{i}"] for i in range(decoder_config(model).num_hidden_layers)]
    assert blocks == sorted(blocks, key=GPUS.index)
    assert len(set(blocks)) == 4
    named = {name: module for name, module in model.named_modules() if name in places}
    for ends, device in (
        (model.get_input_embeddings(), GPUS[0]),
        (model.get_output_embeddings(), GPUS[0 if tied else 3]),
    ):
        inside = [places[name] for name, module in named.items() if any(part is ends for part in module.modules())]
        assert inside == [device]


def test_the_fullest_device_is_what_the_biggest_parts_force() -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    places = device_map(model, GPUS[:2], lambda _, each: each.nbytes)
    loads = dict.fromkeys(GPUS[:2], 0)
    for name, parameter in model.named_parameters():
        loads[next(d for key, d in places.items() if name == key or name.startswith(f"{key}."))] += parameter.nbytes
    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    assert abs(loads[GPUS[0]] - loads[GPUS[1]]) <= block


def test_a_model_in_pieces_gives_the_answers_of_the_whole() -> None:
    """Every block behind accelerate's hooks, as over several GPUs, though all pieces are on the CPU here."""
    from accelerate import dispatch_model

    whole, pieces = loaded_model("qwen3_5_text"), loaded_model("qwen3_5_text")
    places: dict = dict.fromkeys(device_map(pieces.model, GPUS, lambda _, each: each.nbytes), "cpu")
    dispatch_model(pieces.model, places, force_hooks=True)
    prompts = encode(whole.tokenizer, PROMPTS)
    results = []
    for loaded in (whole, pieces):
        events: list = []
        prepared = prepare(loaded, prompts, emit=events.append, rows=3)
        assert events == []
        with EditSession(loaded.writers, max_trials=3) as session:
            session.write(edits_for(loaded))
            results.append(generate(loaded, prepared, max_new_tokens=4, session=session).ids)
    assert results[0] == results[1]
    residuals = [capture(loaded, prompts, emit=lambda _: None) for loaded in (whole, pieces)]
    assert torch.equal(*residuals)


def test_auto_is_every_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_for("auto") == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_for("auto") == GPUS[:2]
