"""The algebra of edits: what leaves, what is kept, and that hooks and baked weights are the same edit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.bake import bake_bias, bake_weight
from bruno.engine.edits.build import (
    EditBatch,
    Kernel,
    TrialEdit,
    WriterEdit,
    build_edits,
    gained,
    orthonormal,
    trial_directions,
    writer_edit,
)
from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import ATTENTION, MLP, Writer
from bruno.errors import BrunoError, InputError
from tests.engine.models import loaded_model

MODES = ("column", "none", "row", "frobenius")


def random_directions(layers: int, hidden: int, count: int = 1, seed: int = 0) -> DirectionSet:
    generator = torch.Generator().manual_seed(seed)
    vectors = orthonormal(torch.randn(layers + 1, count, hidden, generator=generator))
    return DirectionSet(vectors=vectors, weights=torch.tensor([1.0, 0.6, 0.3][:count]), used=("random",))


def with_compliance(layers: int, hidden: int, count: int = 1, seed: int = 0) -> DirectionSet:
    """Random directions, calibrated, and one to add at each layer, orthogonal to them."""
    directions = random_directions(layers, hidden, count, seed)
    more = torch.randn(layers + 1, 1, hidden, generator=torch.Generator().manual_seed(seed + 1))
    compliance = orthonormal(torch.cat([directions.vectors, more], dim=1))[:, -1]
    return replace(directions, calibration=0.9, compliance=compliance)


@pytest.mark.parametrize(
    ("kernel", "layer", "expected"),
    [
        (Kernel(1.2, 5, 0.5, 4), 5, 1.2),
        (Kernel(1.2, 5, 0.5, 4), 9, 0.6),
        (Kernel(1.2, 5, 0.5, 4), 1, 0.6),
        (Kernel(1.2, 5, 0.5, 4), 7, 0.9),
        (Kernel(1.2, 5, 0.5, 4), 10, 0.0),
        (Kernel(1.0, 5.5, 0.0, 2), 6, 0.75),
        (Kernel(1.0, 5, 0.0, 2), 7, 0.0),
        (Kernel(-0.25, 5, 0.5, 4), 5, 0.0),
        (Kernel(1.0, 5, 0.5, 0), 5, 1.0),
        (Kernel(1.0, 5, 0.5, 0), 6, 0.0),
    ],
)
def test_the_kernel_is_a_tent(kernel: Kernel, layer: int, expected: float) -> None:
    assert kernel.weight(layer) == pytest.approx(expected)


signed = st.lists(st.floats(-0.8, 1.5), min_size=2, max_size=2)  # a negative strength adds the direction
shapes = st.tuples(st.integers(2, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 10_000))


def planted(
    shape: tuple[int, int, int, int], strengths: list[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W [d, d_in] with rows of unlike norms, V [2, k, d] and w [2, k] for two trials."""
    hidden, inputs, count, seed = shape
    count = min(count, hidden - 1)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(hidden, inputs, generator=generator) * torch.rand(hidden, 1, generator=generator).exp()
    basis = orthonormal(torch.randn(2, count, hidden, generator=generator))
    return weight, basis, torch.tensor(strengths)[:, None].expand(2, count)


@settings(deadline=None, max_examples=60)
@given(shape=shapes, strengths=signed, mode=st.sampled_from(MODES))
def test_a_hooked_module_equals_its_baked_weight(shape, strengths, mode) -> None:
    weight, basis, w = planted(shape, strengths)
    hidden, inputs = weight.shape
    edit = writer_edit(weight, basis, w, mode)
    module = nn.Linear(inputs, hidden)
    with torch.no_grad():
        module.weight.copy_(weight)
    bias = module.bias.detach().clone()
    x = torch.randn(4, 3, inputs)
    with torch.inference_mode(), EditSession([Writer(0, ATTENTION, module, "m")], max_trials=2) as session:
        session.write(EditBatch(trials=2, edits={0: edit}, first_layer=(0, 0)))
        session.rows(torch.tensor([0, 1, 1, 0]))
        hooked = module(x)
    for row, trial in enumerate([0, 1, 1, 0]):
        baked = nn.functional.linear(x[row], bake_weight(weight, edit, trial), bake_bias(bias, edit, trial))
        scale = baked.abs().max().clamp_min(1.0)
        assert (hooked[row] - baked).abs().max() / scale < 1e-5


@settings(deadline=None, max_examples=60)
@given(shape=shapes)
def test_at_strength_one_with_column_norms_the_direction_is_gone_and_the_norms_are_kept(shape) -> None:
    weight, basis, w = planted(shape, [1.0, 1.0])
    weight, basis = weight.double(), orthonormal(basis.double())
    edit = writer_edit(weight, basis, w.double(), "column")
    baked = weight * edit.input_scale[0]
    baked = baked + edit.write[0].T @ (edit.read[0] @ baked)
    left = (basis[0] @ baked).norm() / (basis[0] @ weight).norm().clamp_min(1e-9)
    assert left < 1e-6
    before, after = weight.norm(dim=0), baked.norm(dim=0)
    alive = after > 1e-2 * before  # a column that was nearly all direction has nothing left to scale
    assert torch.allclose(after[alive], before[alive], rtol=1e-6)


def test_in_fp32_the_leftover_and_the_column_norms_hold_to_a_millionth() -> None:
    weight, basis, w = planted((64, 96, 1, 3), [1.0, 1.0])
    baked = bake_weight(weight, writer_edit(weight, basis, w, "column"))
    assert (basis[0] @ baked).norm() < 1e-6 * (basis[0] @ weight).norm()
    assert torch.allclose(baked.norm(dim=0), weight.norm(dim=0), rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(shape=shapes, strengths=signed)
def test_row_norms_by_the_closed_form_equal_a_direct_computation(shape, strengths) -> None:
    weight, basis, w = planted(shape, strengths)
    baked = bake_weight(weight, writer_edit(weight, basis, w, "row"), 1)
    norms = weight.double().norm(dim=1, keepdim=True)
    unit, vectors = weight.double() / norms, basis[1].double()
    direct = unit - vectors.T @ (w[1].double()[:, None] * (vectors @ unit))
    lengths = direct.norm(dim=1, keepdim=True)
    direct = norms * direct / lengths
    alive = (lengths > 1e-2)[:, 0]
    assert torch.allclose(baked[alive].double(), direct[alive], rtol=1e-3, atol=1e-4 * float(norms.max()))


def test_the_other_norm_modes_keep_what_they_say() -> None:
    weight, basis, w = planted((24, 40, 2, 1), [1.2, 0.7])
    frobenius = bake_weight(weight, writer_edit(weight, basis, w, "frobenius"))
    assert frobenius.norm() == pytest.approx(float(weight.norm()), rel=1e-5)
    rows = bake_weight(weight, writer_edit(weight, basis, w, "row"))
    assert torch.allclose(rows.norm(dim=1), weight.norm(dim=1), rtol=1e-5)
    plain = bake_weight(weight, writer_edit(weight, basis, w, "none"))
    expected = weight - basis[0].T @ (w[0][:, None] * (basis[0] @ weight))
    assert torch.allclose(plain, expected, atol=1e-5)
    assert (
        basis[0] @ rows
    ).norm() > 1e-3  # row norms put part of the direction back: that is why column is the default


def test_a_column_that_is_all_direction_is_not_scaled_up_from_rounding() -> None:
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    weight = torch.stack([3 * direction, torch.randn(16)], dim=1)
    edit = writer_edit(weight, direction[None, None], torch.ones(1, 1), "column")
    assert edit.input_scale[0, 0] == 1
    assert bake_weight(weight, edit)[:, 0].abs().max() < 1e-5


def test_half_precision_and_transposed_weights_keep_type_and_orientation() -> None:
    weight, basis, w = planted((16, 24, 1, 2), [1.0, 0.5])
    edit = writer_edit(weight, basis, w, "column")
    baked = bake_weight(weight.T.contiguous().bfloat16(), edit, 0, transposed=True)
    assert baked.dtype == torch.bfloat16
    assert torch.allclose(baked.T.float(), bake_weight(weight, edit, 0), atol=0.05)


def test_behind_a_post_norm_it_is_the_gained_direction_that_must_go() -> None:
    direction = torch.nn.functional.normalize(torch.randn(1, 1, 20), dim=-1)
    gain = 1 + 0.5 * torch.randn(20)
    basis = gained(direction, gain)
    z = torch.randn(20)
    left = z - basis[0, 0] * (basis[0, 0] @ z)
    added = gain * left / left.square().mean().sqrt()  # what the block adds to the stream
    assert abs(float(added @ direction[0, 0])) < 1e-5


def test_a_fractional_index_interpolates_after_aligning_signs() -> None:
    low, high = torch.eye(4)[0], torch.nn.functional.normalize(torch.tensor([1.0, 1.0, 0, 0]), dim=0)
    directions = DirectionSet(torch.stack([torch.zeros(4), low, -high])[:, None], torch.ones(1), ("test",))
    mixed = trial_directions(TrialEdit("global", 0.5), directions, 0)[0]
    assert float(mixed @ low) > 0.9
    assert float(mixed @ high) > 0.9
    whole = trial_directions(TrialEdit("global", 1.0), directions, 0)[0]
    assert whole.tolist() == pytest.approx((-high).tolist())
    assert trial_directions(TrialEdit("per layer", None), directions, 1)[0].tolist() == pytest.approx((-high).tolist())


@pytest.mark.parametrize("index", [None, -0.1, 1.1])
def test_an_index_outside_the_model_is_refused(index: float | None) -> None:
    trial = TrialEdit("global", index, {ATTENTION: Kernel(1, 0, 1, 1)})
    with pytest.raises(InputError, match="from 0 to 1"):
        trial_directions(trial, random_directions(2, 8), 0)


def test_unknown_components_are_refused_and_untouched_writers_are_absent() -> None:
    loaded = loaded_model("llama")
    directions = random_directions(loaded.layers, loaded.hidden_size)
    with pytest.raises(InputError, match=r"experts.*attn\.o_proj, mlp\.down_proj"):
        build_edits([TrialEdit("per layer", None, {"experts": Kernel(1, 0, 1, 1)})], directions, loaded.writers)
    batch = build_edits(
        [TrialEdit("per layer", None, {MLP: Kernel(1, 3, 1, 1)}), TrialEdit("per layer", None)],
        directions,
        loaded.writers,
    )
    assert sorted(batch.edits) == [5, 7]
    assert batch.first_layer == (2, 4)


def test_a_session_refuses_what_it_has_no_room_for() -> None:
    loaded = loaded_model("llama")
    empty = EditBatch(trials=3, edits={}, first_layer=(4, 4, 4))
    with EditSession(loaded.writers, max_trials=2) as session:
        with pytest.raises(BrunoError, match="3 trials do not fit"):
            session.write(empty)
        session.write(EditBatch(trials=2, edits={}, first_layer=(4, 4)))
        with pytest.raises(BrunoError, match="Rows name trials 0 to 2"):
            session.rows(torch.tensor([0, 2]))


def test_writing_trials_again_reuses_the_same_memory() -> None:
    loaded = loaded_model("llama")
    directions = random_directions(loaded.layers, loaded.hidden_size)
    with EditSession(loaded.writers, max_trials=4) as session:
        places = []
        for strength in (1.0, 0.5):
            trial = TrialEdit("per layer", None, {ATTENTION: Kernel(strength, 2, 1, 4)})
            session.write(build_edits([trial] * 3, directions, loaded.writers))
            places.append([b.data_ptr() for site in session._sites for b in site.buffers._tensors.values()])
        assert places[0] == places[1]


def test_an_edit_without_scales_has_none() -> None:
    weight, basis, w = planted((8, 8, 1, 0), [1.0, 1.0])
    edit = writer_edit(weight, basis, w, "none")
    assert isinstance(edit, WriterEdit)
    assert edit.input_scale is None
    assert edit.output_scale is None
