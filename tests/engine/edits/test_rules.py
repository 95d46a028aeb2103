"""What the rules of a run do to an edit: heads, added directions, profiles, calibration, experts and routers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from bruno.engine.edits.algebra import NormMode, with_added, writer_edit
from bruno.engine.edits.bake import bake_weight
from bruno.engine.edits.build import (
    EditBatch,
    EditRules,
    Kernel,
    TrialEdit,
    build_edits,
    orthonormal,
    profile_factor,
)
from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import ATTENTION, MLP, Mixture, Writer, find_mixtures
from bruno.errors import BrunoError, InputError
from tests.engine.edits.test_build import MODES, planted, random_directions, shapes, signed, with_compliance
from tests.engine.models import loaded_model

EVERYWHERE = TrialEdit("per layer", None, {ATTENTION: Kernel(1, 0, 1, 9), MLP: Kernel(1, 0, 1, 9)})


def direct(weight: torch.Tensor, basis: torch.Tensor, w: torch.Tensor, mode: NormMode, columns: torch.Tensor):
    """The edit as its definition says it, in fp64: project some columns, then restore norms."""
    weight, basis, w = weight.double(), basis.double(), w.double()
    rows = weight.norm(dim=1, keepdim=True)
    start = weight / rows if mode == "row" else weight
    edited = start - basis.T @ (w[:, None] * (basis @ (start * columns)))
    if mode == "row":
        return edited / edited.norm(dim=1, keepdim=True) * rows
    if mode == "column":
        return edited * (weight.norm(dim=0) / edited.norm(dim=0))
    return edited * (weight.norm() / edited.norm()) if mode == "frobenius" else edited


@settings(deadline=None, max_examples=50)
@given(shape=shapes, strengths=signed, mode=st.sampled_from(MODES), chosen=st.integers(1, 2**20))
def test_an_edit_of_some_columns_is_its_definition_in_every_norm_mode(shape, strengths, mode, chosen) -> None:
    weight, basis, w = planted(shape, strengths)
    columns = torch.tensor([chosen >> (i % 20) & 1 == 1 for i in range(weight.shape[1])])
    edit = writer_edit(weight, basis, w, mode, columns)
    for trial in range(2):
        expected = direct(weight, basis[trial], w[trial], mode, columns)
        baked = bake_weight(weight, edit, trial).double()
        start = weight.double().norm(dim=0 if mode != "row" else 1)
        plain = direct(weight, basis[trial], w[trial], "none", columns).norm(dim=0)
        if mode == "row":  # a row that was all direction has nothing left to scale
            unit = direct(weight / weight.norm(dim=1, keepdim=True), basis[trial], w[trial], "none", columns)
            alive = unit.norm(dim=1) > 1e-2
            expected, baked = expected[alive], baked[alive]
        elif mode == "column":
            alive = plain > 1e-2 * start
            expected, baked = expected[:, alive], baked[:, alive]
        elif mode == "frobenius" and plain.norm() < 1e-2 * start.norm():
            continue
        assert torch.allclose(baked, expected, rtol=1e-3, atol=1e-4 * float(weight.norm(dim=1).max()))


@pytest.mark.parametrize("mode", MODES)
def test_heads_that_are_not_chosen_keep_their_columns(mode: NormMode) -> None:
    """With grouped-query attention too: two heads of keys and values, four of queries, whose outputs are the columns."""
    loaded = loaded_model("qwen3")
    writer = loaded.writers[4]
    directions = random_directions(loaded.layers, loaded.hidden_size)
    batch = build_edits([EVERYWHERE], directions, loaded.writers, EditRules(norm_mode=mode, heads={2: (1, 3)}))
    assert sorted(index for index in batch.edits if loaded.writers[index].component == ATTENTION) == [4]
    before, after = writer.weight(), bake_weight(writer.weight(), batch.edits[4])
    assert writer.weight_shape[1] == 4 * 16
    direction = directions.vectors[3, 0]
    kept, edited = ([slice(16 * h, 16 * h + 16) for h in heads] for heads in ((0, 2), (1, 3)))
    for part in kept:
        if mode in ("column", "none"):
            assert torch.equal(before[:, part], after[:, part])
        assert (direction @ before[:, part]).norm() > 0.1
    for part in edited:
        if mode != "row":
            assert (direction @ after[:, part]).norm() < 1e-6 * (direction @ before[:, part]).norm()
        if mode == "column":
            assert torch.allclose(after[:, part].norm(dim=0), before[:, part].norm(dim=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (EditRules(heads={1: (4,)}), r"self_attn\.o_proj has heads 0 to 3, not 4"),
        (EditRules(experts={1: (0, 9)}), "Block 1 has experts 0 to 3, not 9"),
    ],
)
def test_heads_and_experts_that_are_not_there_are_refused(rules: EditRules, message: str) -> None:
    loaded = loaded_model("mixtral")
    with pytest.raises(InputError, match=message):
        build_edits([EVERYWHERE], random_directions(4, 48), loaded.writers, rules)


def test_heads_that_nobody_knows_are_refused() -> None:
    loaded = loaded_model("llama")
    writers = [replace(writer, heads=0) for writer in loaded.writers]
    with pytest.raises(InputError, match=r"heads of model\.layers\.1\.self_attn\.o_proj are not known"):
        build_edits([EVERYWHERE], random_directions(4, 48), writers, EditRules(heads={1: (0,)}))


def test_a_compliance_direction_is_added_to_attention_and_nothing_removed_comes_back() -> None:
    loaded = loaded_model("llama")
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    directions = replace(directions, calibration=1.0, weights=torch.ones(2))
    batch = build_edits([EVERYWHERE], directions, loaded.writers, EditRules("none", compliance_strength=0.3))
    for index, writer in enumerate(loaded.writers):
        before, after = writer.weight(), bake_weight(writer.weight(), batch.edits[index])
        removed, added = directions.vectors[writer.layer + 1], directions.compliance[writer.layer + 1]
        assert (removed @ after).norm() < 1e-5
        gain = 1.3 if writer.component == ATTENTION else 1.0
        assert torch.allclose(added @ after, gain * (added @ before), atol=1e-5)


def test_of_an_added_direction_only_the_part_beside_the_removed_ones_counts() -> None:
    removed, added = torch.eye(6)[None, :1], torch.tensor([0.6, 0.8, 0, 0, 0, 0])
    basis, strengths = with_added(removed, torch.ones(1, 1), added, torch.tensor([0.5]))
    assert torch.allclose(basis[0], torch.eye(6)[:2])
    assert strengths[0].tolist() == pytest.approx([1.0, -0.5 * 0.64])
    basis, strengths = with_added(removed, torch.ones(1, 1), torch.zeros(6), torch.tensor([0.5]))
    assert strengths[0, 1] == 0


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ((), [1, 1, 1, 1, 1]),
        ((0.5,), [0.5] * 5),
        ((0.0, 1.0), [0, 0.25, 0.5, 0.75, 1]),
        ((1.0, 0.0, 2.0), [1, 0.5, 0, 1, 2]),
    ],
)
def test_a_profile_lies_evenly_over_the_depth(profile: tuple[float, ...], expected: list[float]) -> None:
    assert [profile_factor(profile, layer, 5) for layer in range(5)] == pytest.approx(expected)


def test_every_strength_is_kernel_times_calibration_times_profile_times_weight_times_further() -> None:
    loaded = loaded_model("llama")
    directions = replace(random_directions(4, 48, 3), calibration=0.8)
    trial = TrialEdit("per layer", None, {MLP: Kernel(1.2, 0, 0.0, 6)}, further=0.5)
    batch = build_edits([trial], directions, loaded.writers, EditRules("none", layer_profile=(1.0, 0.4)))
    edit = batch.edits[5]  # the MLP of block 2
    strengths = -(edit.write * edit.read).sum(-1)[0]
    shared = 1.2 * (1 - 2 / 6) * 0.8 * 0.6
    assert strengths.tolist() == pytest.approx([shared, shared * 0.6 * 0.5, shared * 0.3 * 0.5])
    off = build_edits([trial], directions, loaded.writers, EditRules("none", layer_profile=(0.0, 0.0)))
    assert not off.edits
    assert off.first_layer == (4,)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "deepseek_v3", "qwen3_next"])
def test_an_edit_of_the_blocks_output_equals_the_edit_of_every_expert(kind: str) -> None:
    """Without norms the same projection on each expert is one projection of their sum, shared experts included."""
    loaded = loaded_model(kind)
    directions = random_directions(loaded.layers, loaded.hidden_size, 2)
    trial = TrialEdit("per layer", None, {MLP: Kernel(0.9, 2, 1, 9)})
    batch = build_edits([trial], directions, loaded.writers, "none")
    mixture = find_mixtures(loaded.writers)[-1]
    hidden = torch.randn(3, 5, loaded.hidden_size, generator=torch.Generator().manual_seed(0))
    basis = directions.vectors[mixture.layer + 1]
    plain = mixture.module(hidden)
    expected = plain - (plain @ basis.T * (0.9 * directions.weights)) @ basis
    with EditSession(loaded.writers, 1) as session:
        session.write(batch)
        assert (mixture.module(hidden) - expected).abs().max() < 1e-5


@torch.inference_mode()
def test_tokens_of_several_trials_in_one_batch_get_their_own_edit() -> None:
    loaded = loaded_model("qwen3_moe")
    directions = random_directions(loaded.layers, loaded.hidden_size)
    trials = [TrialEdit("per layer", None, {MLP: Kernel(w, 2, 1, 9)}) for w in (1.0, 0.5, 0.0)]
    ids = torch.arange(3, 63).view(5, 12)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((4, 0, 7, 2, 0)):
        mask[row, :padding] = 0
    owners = [2, 0, 1, 0, 2]
    with EditSession(loaded.writers, 3) as session:
        session.write(build_edits(trials, directions, loaded.writers, EditRules(router=1.0)))
        session.rows(torch.tensor(owners))
        together = loaded.model(input_ids=ids, attention_mask=mask).logits
        for row, trial in enumerate(owners):
            session.rows_of(trial)
            own = int(mask[row].sum())
            alone = loaded.model(input_ids=ids[row : row + 1, -own:]).logits
            assert (alone[0] - together[row, -own:]).abs().max() < 2e-5


@torch.inference_mode()
def test_a_router_made_blind_to_a_direction_scores_the_same_without_it() -> None:
    loaded = loaded_model("mixtral")
    directions = random_directions(loaded.layers, loaded.hidden_size)
    mixture = find_mixtures(loaded.writers)[1]
    direction = directions.vectors[2, 0]
    hidden = torch.randn(7, loaded.hidden_size)
    moved = hidden + 3 * direction
    with EditSession(loaded.writers, 1) as session:
        session.write(build_edits([EVERYWHERE], directions, loaded.writers, EditRules(router=1.0)))
        assert torch.allclose(mixture.router(hidden)[0], mixture.router(moved)[0], atol=1e-5)
        session.write(build_edits([EVERYWHERE], directions, loaded.writers, EditRules(router=0.0)))
        assert not torch.allclose(mixture.router(hidden)[0], mixture.router(moved)[0], atol=1e-2)


def test_a_trial_that_only_blinds_routers_begins_at_their_block() -> None:
    loaded = loaded_model("mixtral")
    trial = TrialEdit("per layer", None, {MLP: Kernel(1, 2, 1, 0)})
    batch = build_edits([trial], random_directions(4, 48), loaded.writers, EditRules(experts={}, router=0.5))
    assert not batch.edits
    assert list(batch.routers) == [2]
    assert batch.first_layer == (2,)


@torch.inference_mode()
@settings(deadline=None, max_examples=40)
@given(
    experts=st.integers(2, 5),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(MODES),
    chosen=st.integers(1, 31),
    mixed=st.booleans(),
)
def test_fused_experts_of_any_shape_under_hooks_equal_baked_ones(experts, shape, tokens, seed, mode, chosen, mixed):
    hidden, inner = 4 * shape[0], 4 * shape[1]  # the grouped product wants rows of whole 16 bytes
    config = MixtralConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=experts)
    config._experts_implementation = "grouped_mm"
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) / size[-1] ** 0.5

    module = MixtralExperts(config).requires_grad_(False)
    module.gate_up_proj.copy_(random(experts, 2 * inner, hidden))
    module.down_proj.copy_(random(experts, hidden, inner))
    mixture = Mixture(0, module, nn.Linear(hidden, experts), "router", experts, fused=True)
    writer = Writer(0, MLP, module, "experts", mixture=mixture)
    basis, w = orthonormal(random(2, 1, hidden)), torch.tensor([[1.1], [-0.5]])
    mask = torch.tensor([bool(chosen >> n & 1) or n == 0 for n in range(experts)])
    edit = writer_edit(writer.stored(), basis, w, mode, experts=None if mask.all() else mask)
    x, routed = random(2 * tokens, hidden), torch.rand(2 * tokens, experts, generator=generator).topk(2)
    with EditSession([writer], 2) as session:
        session.write(EditBatch(2, {0: edit}, (0, 0)))
        session.rows(torch.tensor([1, 0] if mixed else [1, 1]))
        hooked = module(x, routed.indices, routed.values)
    original = module.down_proj.clone()
    for row, trial in enumerate((1, 0) if mixed else (1, 1)):
        for number in range(experts):
            module.down_proj[number] = bake_weight(original[number], edit.of_expert(number), trial)
        own = slice(row * tokens, (row + 1) * tokens)
        baked = module(x[own], routed.indices[own], routed.values[own])
        assert (hooked[own] - baked).abs().max() < 1e-5 * baked.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_every_expert_loses_the_direction_and_keeps_its_column_norms(kind: str) -> None:
    loaded = loaded_model(kind)
    directions = random_directions(loaded.layers, loaded.hidden_size)
    batch = build_edits([EVERYWHERE], directions, loaded.writers)
    for index, writer in enumerate(loaded.writers):
        direction = directions.vectors[writer.layer + 1, 0]
        for number in range(writer.experts):
            before = writer.weight(number)
            after = bake_weight(before, batch.edits[index].of_expert(number))
            assert (direction @ after).norm() < 1e-6 * (direction @ before).norm()
            assert torch.allclose(after.norm(dim=0), before.norm(dim=0), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_edit_of_fused_experts_is_the_edit_of_each_and_leaves_the_others_alone(mode: NormMode) -> None:
    weight, basis, w = planted((12, 20, 2, 5), [1.0, 0.4])
    weights = torch.stack([weight.flip(0), weight, 2 * weight.flip(1)])
    fused = writer_edit(weights, basis, w, mode, experts=torch.tensor([False, True, True]))
    everything = writer_edit(weights, basis, w, mode)
    assert everything.edited is None
    for trial in range(2):
        assert torch.equal(bake_weight(weights[0], fused.of_expert(0), trial), weights[0])
        for edit, number in ((fused, 1), (fused, 2), (everything, 0)):
            own = bake_weight(weights[number], writer_edit(weights[number], basis, w, mode), trial)
            assert torch.allclose(bake_weight(weights[number], edit.of_expert(number), trial), own, atol=1e-6)


def test_one_session_at_a_time_and_everything_is_put_back() -> None:
    loaded = loaded_model("mixtral")
    config = loaded.model.config
    before = config._experts_implementation
    with EditSession(loaded.writers, 1):
        assert config._experts_implementation == "bruno_edits"
        with pytest.raises(BrunoError, match="one edit session at a time"):
            EditSession(loaded.writers, 1).__enter__()
        assert config._experts_implementation == "bruno_edits"
    assert config._experts_implementation == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_a_session_that_is_off_leaves_the_base_model_to_the_bit() -> None:
    loaded = loaded_model("gpt_oss")
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode(), EditSession(loaded.writers, 1) as session:
        session.off()
        off = loaded.model(ids).logits
        session.write(EditBatch(1, {}, (4,)))
        empty = loaded.model(ids).logits
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, off)
        assert torch.equal(off, empty)


def test_directions_of_the_basis_stay_orthonormal_with_an_added_one() -> None:
    basis = orthonormal(torch.randn(2, 3, 20))
    joined, strengths = with_added(
        basis, torch.ones(2, 3), torch.nn.functional.normalize(torch.randn(20), dim=0), torch.ones(2)
    )
    assert torch.allclose(joined @ joined.transpose(1, 2), torch.eye(4).expand(2, 4, 4), atol=1e-5)
    assert (strengths[:, 3] < 0).all()
