"""Adapters: loaded with plain peft they give the searched logits, or say by how much they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.build import EditRules, Kernel, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Fallback, Notice
from bruno.engine.export.adapter import EXACT, write_adapter
from bruno.engine.model.chat_format import encode
from bruno.engine.model.loading import LoadedModel
from bruno.errors import InputError
from tests.engine.export.test_card import CARD
from tests.engine.models import loaded_model, tiny_tokenizer

TRIAL = TrialEdit(
    "global",
    1.6,
    {"attn.o_proj": Kernel(1.2, 2, 0.3, 2), "mlp.down_proj": Kernel(0.8, 2.5, 0.2, 1)},
)
IDS = torch.arange(3, 23)[None]


def on_disk(kind: str, folder: Path, **changes: object) -> LoadedModel:
    loaded = loaded_model(kind, source=folder, **changes)
    loaded.model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return loaded


def some_directions(loaded: LoadedModel, count: int = 2, *, compliance: bool = False) -> DirectionSet:
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(loaded.layers + 1, loaded.hidden_size, count + 1, generator=generator)
    basis = torch.linalg.qr(raw)[0].mT.contiguous()
    added = basis[:, count] if compliance else None
    weights = torch.tensor([1.0, 0.5, 0.25][:count])
    return DirectionSet(vectors=basis[:, :count].contiguous(), weights=weights, used=("random",), compliance=added)


def write(loaded: LoadedModel, folder: Path, rules: EditRules, directions: DirectionSet, rank: int = 0):
    events: list = []
    prompts = encode(tiny_tokenizer(), ["one", "two and more", "three"])
    done = write_adapter(
        loaded, TRIAL, directions, rules, folder, prompts=prompts, card=CARD, emit=events.append, rank=rank
    )
    return done, events


def searched(loaded: LoadedModel, rules: EditRules, directions: DirectionSet) -> torch.Tensor:
    with torch.inference_mode(), EditSession(loaded.writers, 1) as session:
        session.write(build_edits([TRIAL], directions, loaded.writers, rules))
        return loaded.model(IDS).logits


def worn(loaded: LoadedModel, adapter: Path) -> torch.Tensor:
    """What anyone gets: the base from its folder, the adapter by peft."""
    base = AutoModelForCausalLM.from_pretrained(loaded.source, dtype=torch.float32)
    with torch.inference_mode():
        return PeftModel.from_pretrained(base, str(adapter)).eval()(IDS).logits


@pytest.mark.parametrize(
    ("kind", "rules", "compliance"),
    [
        ("llama", EditRules(norm_mode="none"), False),
        ("llama", EditRules(norm_mode="none", compliance_strength=0.4), True),
        ("qwen2", EditRules(norm_mode="none", heads={1: (0, 3), 2: (1,)}), False),
        ("gemma2", EditRules(norm_mode="none", layer_profile=(0.5, 1.0)), False),
        ("gpt_neox", EditRules(norm_mode="none"), False),  # writers with biases
        ("gpt2", EditRules(norm_mode="none"), False),  # biases, and weights the other way round
    ],
)
def test_without_norms_plain_peft_gives_the_searched_logits(kind: str, rules, compliance: bool, tmp_path: Path) -> None:
    loaded = on_disk(kind, tmp_path / "base")
    directions = some_directions(loaded, compliance=compliance)
    before = loaded.model(IDS).logits
    done, events = write(loaded, tmp_path / "adapter", rules, directions)
    assert done and done.error <= EXACT and done.kl < 1e-6 and done.rank == (3 if compliance else 2)
    wanted = searched(loaded, rules, directions)
    assert (wanted - before).abs().max() > 0.05  # the edit does something
    assert (wanted - worn(loaded, done.folder)).abs().max() < 1e-4 * wanted.abs().max()
    assert torch.equal(loaded.model(IDS).logits, before)  # the model is as it was
    assert not list(tmp_path.glob(".*partial"))
    card = ModelCard.load(done.folder / "README.md")
    assert card.data.library_name == "peft" and "the edit itself, to fp32 rounding" in card.text
    assert [type(event) for event in events] == [Notice] and str(done.folder) in events[0].text


@pytest.mark.parametrize("mode", ["column", "row", "frobenius"])
def test_with_norms_the_closest_adapter_states_its_error(mode, tmp_path: Path) -> None:
    loaded = on_disk("llama", tmp_path / "base")
    directions, rules = some_directions(loaded, 1), EditRules(norm_mode=mode)
    small, _ = write(loaded, tmp_path / "small", rules, directions, rank=2)
    large, _ = write(loaded, tmp_path / "large", rules, directions, rank=48)
    assert small and large
    assert EXACT < small.error < 1 and large.error < 1e-4 < small.error and large.kl < 1e-6 < small.kl
    wanted = searched(loaded, rules, directions)
    assert (wanted - worn(loaded, large.folder)).abs().max() < 1e-3 * wanted.abs().max()
    # The stated errors are those of the tensors on disk.
    tensors = load_file(small.folder / "adapter_model.safetensors")
    edit = build_edits([TRIAL], directions, loaded.writers, rules).edits
    errors = {}
    for index, writer in enumerate(loaded.writers):
        prefix = f"base_model.model.{writer.name}.lora"
        if index not in edit:
            assert f"{prefix}_A.weight" not in tensors
            continue
        from bruno.engine.edits.bake import bake_weight

        change = bake_weight(writer.weight(), edit[index]) - writer.weight()
        product = tensors[f"{prefix}_B.weight"] @ tensors[f"{prefix}_A.weight"]
        errors[writer.name] = float((change - product).norm() / change.norm())
        best = torch.linalg.svdvals(change)[2:].norm() / change.norm()
        assert errors[writer.name] == pytest.approx(float(best), rel=0.02)
    assert max(errors.values()) == pytest.approx(small.error, rel=1e-3)
    text = (small.folder / "README.md").read_text()
    for name, error in errors.items():
        assert f"| Error of {name} | {100 * error:.3g} % |" in text


def test_what_has_no_adapter_is_said(tmp_path: Path) -> None:
    loaded = on_disk("llama", tmp_path / "base")
    done, events = write(loaded, tmp_path / "adapter", EditRules(norm_mode="column"), some_directions(loaded))
    assert done is None and isinstance(events[0], Fallback) and "adapter_rank" in events[0].reason
    fused = on_disk("mixtral", tmp_path / "fused", num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2)
    done, events = write(fused, tmp_path / "adapter", EditRules(norm_mode="none"), some_directions(fused))
    assert done is None and "Experts" in events[0].reason
    nothing = DirectionSet(vectors=torch.zeros(5, 1, 48), weights=torch.ones(1), used=())
    trial = replace(TRIAL, kernels={"attn.o_proj": Kernel(-0.1, 2, 1, 4)})
    told: list = []
    prompts = encode(tiny_tokenizer(), ["one"])
    done = write_adapter(
        loaded, trial, nothing, EditRules("none"), tmp_path / "a", prompts=prompts, card=CARD, emit=told.append
    )
    assert done is None and "edits nothing" in told[0].reason and not (tmp_path / "adapter").exists()


def test_a_folder_that_exists_is_kept(tmp_path: Path) -> None:
    loaded = on_disk("llama", tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match="exists already"):
        write(loaded, tmp_path / "adapter", EditRules("none"), some_directions(loaded))
