"""Export: the searched model on disk, everything else byte for byte, and nothing at all when it fails."""

from __future__ import annotations

import hashlib
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from bruno.engine.edits.build import EditRules, Kernel, NormMode, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.export.write import ExportFailed, export
from bruno.engine.model.architectures import ATTENTION, MLP, find_writers
from bruno.engine.model.checkpoint import stored_routers, stored_writers
from bruno.engine.model.loading import LoadedModel
from bruno.errors import InputError
from tests.engine.edits.test_build import MODES, with_compliance
from tests.engine.edits.test_equivalence import METHODS
from tests.engine.export.test_card import CARD
from tests.engine.models import CONFIGS, VISION, experts_as_modules, loaded_model, tiny_tokenizer

TRIAL = TrialEdit("global", 1.6, {ATTENTION: Kernel(1.2, 2, 0.3, 1.5), MLP: Kernel(0.8, 2.5, 0.2, 1.5)}, further=0.5)
IDS = torch.arange(3, 23)[None]


def saved(
    kind: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "60KB", **changes: object
) -> LoadedModel:
    """A tiny model in a folder, in several shards, with files of every sort beside it."""
    loaded = loaded_model(kind, source=folder, dtype=dtype, **changes)
    loaded.model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("the base model's card")
    (folder / "code").mkdir()
    (folder / "code" / "modeling_custom.py").write_text("X = 1\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    return loaded


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(loaded: LoadedModel, folder: Path, emit=lambda _: None, rules: EditRules | None = None, **arguments) -> Path:
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    return export(loaded, TRIAL, directions, rules or EditRules(), folder, emit=emit, **arguments)


@torch.inference_mode()
def searched(loaded: LoadedModel, rules: EditRules) -> torch.Tensor:
    directions = with_compliance(loaded.layers, loaded.hidden_size, 2)
    with EditSession(loaded.writers, 1) as session:
        session.write(build_edits([TRIAL], directions, loaded.writers, rules))
        return loaded.model(input_ids=IDS).logits


@torch.inference_mode()
def exported(folder: Path, kind: str) -> torch.Tensor:
    """Logits of a folder in plain transformers."""
    auto = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["gpt2", "gpt_oss"])
def test_the_exported_folder_loads_in_plain_transformers_with_the_searched_logits(
    kind: str, mode: NormMode, tmp_path: Path
) -> None:
    loaded = saved(kind, tmp_path / "base")
    folder = write(loaded, tmp_path / "out" / "edited", rules=EditRules(norm_mode=mode))
    wanted = searched(loaded, EditRules(norm_mode=mode))
    assert (wanted - exported(folder, kind)).abs().max() < 1e-4 * wanted.abs().max()
    assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]


@pytest.mark.parametrize("kind", [*CONFIGS, *VISION])
def test_every_family_is_exported_as_it_was_searched_and_the_rest_keeps_its_bytes(kind: str, tmp_path: Path) -> None:
    loaded = saved(kind, tmp_path / "base", shard="1GB")
    folder = write(loaded, tmp_path / "edited", rules=METHODS["all"])
    wanted = searched(loaded, METHODS["all"])
    assert (wanted - exported(folder, kind)).abs().max() < 1e-4 * wanted.abs().max()
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "base", folder))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    writers = stored_writers(tmp_path / "base", loaded.writers)
    routers = [s for layer, s in stored_routers(tmp_path / "base", loaded.writers).items() if layer >= 1]  # reached
    assert changed
    assert changed <= {s.weight.key for s in writers} | {s.bias.key for s in writers if s.bias} | {
        r.key for r in routers
    }
    assert {s.key for s in routers} <= changed
    assert not any("visual" in key or "vision" in key for key in changed)


def test_only_the_chosen_experts_are_written(tmp_path: Path) -> None:
    loaded = saved("qwen3_moe", tmp_path / "base", shard="1GB")
    folder = write(loaded, tmp_path / "edited", rules=EditRules(experts={2: (1, 3)}))
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "base", folder))
    changed = {key for key in before if ".experts." in key and not torch.equal(before[key], after[key])}
    assert changed == {f"model.layers.2.mlp.experts.{n}.down_proj.weight" for n in (1, 3)}


def test_a_search_on_rounded_weights_exports_the_edit_of_the_original_ones(tmp_path: Path) -> None:
    """What quantisation does: the live weights are not the stored ones, and column norms depend on the weights."""
    loaded = saved("mixtral", tmp_path / "base", shard="1GB")
    wanted = searched(loaded, METHODS["all"])
    for parameter in loaded.model.parameters():
        step = parameter.abs().max() / 7
        parameter.copy_((parameter / step).round() * step)
    folder = write(loaded, tmp_path / "edited", rules=METHODS["all"])
    assert (wanted - exported(folder, "mixtral")).abs().max() < 1e-4 * wanted.abs().max()
    assert (wanted - searched(loaded, METHODS["all"])).abs().max() > 1e-2


def as_hubs_have_it(folder: Path, kind: str) -> None:
    """Rename and fuse the tensors of a saved model as other layouts of the same family have them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if kind in VISION:
        moved = (
            {"language_model.model.": "model.language_model."}
            if kind == "gemma3"
            else {"model.": "model.language_model."}
        )
        old, new = next(iter(moved.items()))
        tensors = {f"{new}{k.removeprefix(old)}" if k.startswith(old) else k: v for k, v in tensors.items()}
        tensors = {k.replace("language_model.lm_head", "lm_head"): v for k, v in tensors.items()}
        towers = ("vision_tower", "multi_modal_projector", "visual")
        tensors = {f"model.{k}" if k.startswith(towers) else k: v for k, v in tensors.items()}
    else:
        for layer in range(4):
            prefix = f"model.layers.{layer}.mlp.experts"
            parts = {
                name: [tensors.pop(f"{prefix}.{n}.{name}.weight") for n in range(4)]
                for name in ("gate_proj", "up_proj", "down_proj")
            }
            tensors[f"{prefix}.down_proj"] = torch.stack(parts["down_proj"])
            tensors[f"{prefix}.gate_up_proj"] = torch.cat(
                [torch.stack(parts["gate_proj"]), torch.stack(parts["up_proj"])], 1
            )
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "qwen3_moe", "qwen3_5_moe_text"])
def test_other_layouts_of_the_same_weights_are_edited_too(kind: str, tmp_path: Path) -> None:
    loaded = saved(kind, tmp_path / "base", shard="1GB")
    as_hubs_have_it(tmp_path / "base", kind)
    folder = write(loaded, tmp_path / "edited", rules=METHODS["all"])
    wanted = searched(loaded, METHODS["all"])
    assert (wanted - exported(folder, kind)).abs().max() < 1e-4 * wanted.abs().max()


def test_experts_as_modules_are_exported(tmp_path: Path) -> None:
    loaded = saved("deepseek_v3", tmp_path / "base", shard="1GB")
    experts_as_modules(loaded.model)
    loaded = replace(loaded, writers=find_writers(loaded.model))
    folder = write(loaded, tmp_path / "edited", rules=METHODS["all"])
    wanted = searched(loaded, METHODS["all"])
    assert (wanted - exported(folder, "deepseek_v3")).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
def test_a_text_model_read_from_a_checkpoint_with_a_tower_is_exported_with_its_tower(kind: str, tmp_path: Path) -> None:
    loaded = saved(kind, tmp_path / "base", shard="1GB")
    wanted = searched(loaded, METHODS["all"])
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval().requires_grad_(False)
    loaded = replace(loaded, model=text, writers=find_writers(text))
    assert loaded.writers[0].name == "model.layers.0.linear_attn.out_proj"
    folder = write(loaded, tmp_path / "edited", rules=METHODS["all"])
    assert (wanted - exported(folder, kind)).abs().max() < 1e-4 * wanted.abs().max()
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "base", folder))
    assert all(torch.equal(before[key], after[key]) for key in before if "visual" in key)


@pytest.mark.parametrize(
    ("kind", "change", "message", "instead"),
    [
        ("gpt_oss", "mxfp4", r"down_proj_blocks .* quantised to four bits", "unsloth/gpt-oss-20b-BF16"),
        ("deepseek_v3", "fp8", "stored as F8_E4M3", "unsloth/DeepSeek-V3-bf16"),
        ("qwen3_moe", "fp8", "stored as F8_E4M3", "lacks the -FP8"),
    ],
)
def test_a_quantised_checkpoint_names_the_one_to_use(
    kind: str, change: str, message: str, instead: str, tmp_path: Path
) -> None:
    loaded = saved(kind, tmp_path / "base", shard="1GB")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    if change == "fp8":
        tensors = {k: v.to(torch.float8_e4m3fn) if "experts" in k else v for k, v in tensors.items()}
    else:
        for key in [k for k in tensors if k.endswith("down_proj")]:
            tensors[f"{key}_blocks"] = tensors.pop(key).to(torch.uint8)
    save_file(tensors, file)
    with pytest.raises(InputError, match=message) as refused:
        stored_writers(tmp_path / "base", loaded.writers)
    assert instead in str(refused.value.fix)


def test_everything_that_is_not_edited_keeps_its_bytes(tmp_path: Path) -> None:
    loaded = saved("qwen2", tmp_path / "base", torch.bfloat16)
    folder = write(loaded, tmp_path / "edited", card=CARD)
    edited = {f"model.layers.{i}.{name}.weight" for i in (1, 2, 3) for name in ("self_attn.o_proj", "mlp.down_proj")}
    shards = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        before, after = load_file(tmp_path / "base" / shard), load_file(folder / shard)
        assert list(before) == list(after)
        for key in before:
            assert before[key].dtype == after[key].dtype
            assert torch.equal(before[key], after[key]) == (key not in edited), key
        if not edited & set(before):
            assert digest(tmp_path / "base" / shard) == digest(folder / shard)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json", "code/modeling_custom.py"):
        assert digest(tmp_path / "base" / name) == digest(folder / name)
    assert (folder / "README.base-model.md").read_text() == "the base model's card"
    card = (folder / "README.md").read_text()
    assert "# edited\n" in card
    assert "0.1234" in card
    assert "Safety behaviour may be changed" in card
    assert not (folder / ".cache").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "edited"]


def test_a_single_file_and_names_without_the_outer_module_are_found(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base", shard="1GB")
    file = tmp_path / "base" / "model.safetensors"
    tensors = {key.removeprefix("model."): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    stored = stored_writers(tmp_path / "base", loaded.writers)
    assert [s.weight.key for s in stored[:2]] == ["layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"]


def test_an_existing_folder_is_never_written_to(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    with pytest.raises(InputError, match="exists already"):
        write(loaded, tmp_path / "base")


def test_what_a_killed_export_left_is_removed_and_named(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    (tmp_path / ".edited.partial").mkdir()
    (tmp_path / ".edited.partial" / "half").write_text("half")
    events: list = []
    folder = write(loaded, tmp_path / "edited", emit=events.append)
    assert not (folder / "half").exists()
    assert "left by an export that was cut off" in events[0].text


def test_without_room_nothing_is_begun(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    with (tmp_path / "base" / "huge.json").open("wb") as stream:
        stream.truncate(2**42)  # sparse: four TiB that take no room
    with pytest.raises(ExportFailed, match=r"needs 4\.0 TiB"):
        write(loaded, tmp_path / "edited")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, hard)
    )  # the system refuses the bytes after that, as a full disk does
    try:
        with pytest.raises(ExportFailed, match="could not be written"):
            write(loaded, tmp_path / "edited")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_an_edit_that_overflows_the_data_type_is_refused(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base", torch.float16)
    huge = TrialEdit("per layer", None, {ATTENTION: Kernel(1e7, 0, 1, 9)})
    directions = with_compliance(loaded.layers, loaded.hidden_size)
    with pytest.raises(ExportFailed, match=r"o_proj\.weight overflow"):
        export(loaded, huge, directions, EditRules(norm_mode="none"), tmp_path / "edited", emit=lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def cut_short(folder: Path) -> None:
    file = next(iter(sorted(folder.glob("*.safetensors"))))
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)


def drop_shard(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()


def no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def not_json(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weights": []}))


def escaping_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def quantised(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({k: v.to(torch.float8_e4m3fn) if "o_proj" in k else v for k, v in tensors.items()}, file)


def renamed(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({k.replace("o_proj", "output"): v for k, v in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "cut short"),
        (drop_shard, "lacks model-"),
        (no_weights, "holds no model.safetensors"),
        (not_json, "not a safetensors file"),
        (broken_index, "not an index"),
        (escaping_index, r"lacks \.\./"),
        (quantised, "stored as F8_E4M3"),
        (renamed, r"holds neither model\.layers\.0\.self_attn\.o_proj\.weight"),
    ],
)
def test_files_that_cannot_be_edited_whole_are_refused_by_name(damage, message: str, tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    damage(tmp_path / "base")
    with pytest.raises(InputError, match=message):
        stored_writers(tmp_path / "base", find_writers(loaded.model))
    with pytest.raises(InputError, match=message):
        write(loaded, tmp_path / "edited")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base")
    other = loaded_model("llama", intermediate_size=64)
    with pytest.raises(InputError, match=r"has shape \[48, 80\], the model has \[48, 64\]"):
        stored_writers(tmp_path / "base", other.writers)
