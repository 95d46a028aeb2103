"""Products with half-precision weights to fp32 accuracy, and norms that are kept as long as they are true."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.edits import products
from bruno.engine.edits.build import EditRules, Kernel, TrialEdit, build_edits, writer_edit
from bruno.engine.edits.products import norms_of, product, split, squared_norms
from bruno.engine.model.architectures import ATTENTION, MLP
from tests.engine.edits.test_build import MODES, planted, random_directions, with_compliance
from tests.engine.models import loaded_model


@settings(deadline=None, max_examples=40)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_three_bf16_parts_are_the_fp32_number(scale: float, seed: int) -> None:
    rows = scale * torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    parts = split(rows)
    assert parts.dtype == torch.bfloat16
    assert parts.shape == (3, 3, 40)
    assert ((parts.double().sum(0) - rows.double()).abs() <= 2.0**-24 * rows.abs()).all()


def widened(lines: torch.Tensor, weight: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """What a GPU's mixed product gives: exact products of bf16 numbers, summed in fp32."""
    assert lines.dtype == weight.dtype == torch.bfloat16
    return lines.to(out_dtype) @ weight.to(out_dtype)


@pytest.mark.parametrize("shape", [(48, 70), (3, 48, 70)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_product_is_as_exact_as_its_rows_whatever_the_weights_type(shape, dtype, mixed, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(shape, generator=generator).to(dtype), torch.randn(6, 48, generator=generator)
    monkeypatch.setattr(products, "_CHUNK", 200)
    if mixed:  # this processor has no such product: its place is taken by one that rounds alike
        monkeypatch.setattr(products, "widens", lambda _: True)
        monkeypatch.setattr(torch, "mm", widened)
        monkeypatch.setattr(torch, "bmm", widened)
    expected = rows.double() @ weight.double()
    for stored in (weight, weight.mT.contiguous().mT):
        assert ((product(rows, stored) - expected).abs() / expected.abs().max()).max() < 5e-7
    own = torch.randn(*shape[:-2], 6, 48, generator=generator)
    expected = own.double() @ weight.double()
    assert ((product(own, weight) - expected).abs() / expected.abs().max()).max() < 5e-7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("some", [False, True])
def test_an_edit_of_a_half_precision_weight_is_that_of_its_fp32_copy(mode, some) -> None:
    weight, basis, w = planted((40, 56, 2, 3), [1.1, 0.6])
    columns = torch.arange(56) % 3 > 0 if some else None
    half = weight.bfloat16()
    one, other = writer_edit(half, basis, w, mode, columns), writer_edit(half.float(), basis, w, mode, columns)
    for name, value in vars(one).items():
        expected = getattr(other, name)
        assert (value is None) == (expected is None)
        if value is not None:
            assert value.dtype == torch.float32
            assert torch.allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_norms_are_in_chunks_what_they_are_whole(monkeypatch) -> None:
    weight = torch.randn(2, 30, 50)
    monkeypatch.setattr(products, "_CHUNK", 300)
    for axis in (-1, -2):
        assert torch.allclose(squared_norms(weight, axis), weight.square().sum(axis))


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_norms_are_kept_until_the_weight_changes(kind: str) -> None:
    loaded = loaded_model(kind)
    writer = loaded.writers[3]
    first = norms_of(writer, writer.stored(), -2)
    assert norms_of(writer, writer.stored(), -2) is first
    with torch.inference_mode():
        writer.parameter.mul_(2)
    assert torch.allclose(norms_of(writer, writer.stored(), -2), 4 * first)
    assert torch.allclose(norms_of(writer, writer.stored(), -1), writer.stored().square().sum(-1))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "olmo2", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("scopes", [("global", "global"), ("per layer", "global")])
def test_trials_built_together_are_what_they_are_alone(kind: str, scopes: tuple[str, str]) -> None:
    loaded = loaded_model(kind)
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    trials = [
        TrialEdit(
            scope, 1.4 + i if scope == "global" else None, {MLP: Kernel(1, 2, 0.5, 2), ATTENTION: Kernel(w, 1, 1, 9)}
        )
        for i, (scope, w) in enumerate(zip(scopes, (0.9, 0.4), strict=True))
    ]
    rules = EditRules(compliance_strength=0.3, router=0.5)
    together = build_edits(trials, directions, loaded.writers, rules)
    for t, trial in enumerate(trials):
        alone = build_edits([trial], directions, loaded.writers, rules)
        assert alone.edits.keys() == together.edits.keys()
        assert alone.first_layer[0] == together.first_layer[t]
        for both, own in ((together.edits, alone.edits), (together.routers, alone.routers)):
            for index, edit in own.items():
                for name, value in vars(edit).items():
                    if value is not None:
                        assert torch.allclose(getattr(both[index], name)[t], value[0], atol=1e-6)


def test_bf16_models_are_edited_as_their_weights_in_fp32_say() -> None:
    loaded, wide = loaded_model("llama", dtype=torch.bfloat16), loaded_model("llama")
    for writer, other in zip(loaded.writers, wide.writers, strict=True):
        other.parameter.copy_(writer.parameter)
    directions = random_directions(loaded.layers, loaded.hidden_size, 2)
    trial = TrialEdit("per layer", None, {MLP: Kernel(1, 2, 0.5, 9)})
    edits = [build_edits([trial], directions, model.writers).edits for model in (loaded, wide)]
    for index, edit in edits[0].items():
        assert torch.allclose(edit.input_scale, edits[1][index].input_scale, rtol=1e-6)
