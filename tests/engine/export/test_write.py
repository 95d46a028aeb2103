"""Export: the searched model on disk, everything else byte for byte, and nothing at all when it fails."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bruno.engine.edits.build import EditBatch
from bruno.engine.edits.session import EditSession
from bruno.engine.export.write import ExportFailed, export
from bruno.engine.model.architectures import find_writers
from bruno.engine.model.checkpoint import stored_writers
from bruno.engine.model.loading import LoadedModel
from bruno.errors import InputError
from tests.engine.model.test_generate import edits_for
from tests.engine.models import loaded_model, tiny_tokenizer


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


@pytest.mark.parametrize("mode", ["column", "none", "row", "frobenius"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_the_exported_folder_loads_in_plain_transformers_with_the_searched_logits(
    kind: str, mode: str, tmp_path: Path
) -> None:
    loaded = saved(kind, tmp_path / "base")
    batch = edits_for(loaded, mode)
    ids = torch.arange(3, 23)[None]
    with torch.inference_mode(), EditSession(loaded.writers, 3) as session:
        session.write(batch)
        session.rows_of(1)
        searched = loaded.model(ids).logits
    folder = export(loaded, batch, tmp_path / "out" / "edited", emit=lambda _: None, trial=1)
    with torch.inference_mode():
        exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    assert (searched - exported).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]


def test_everything_that_is_not_edited_keeps_its_bytes(tmp_path: Path) -> None:
    loaded = saved("qwen2", tmp_path / "base", torch.bfloat16)
    batch = edits_for(loaded)
    folder = export(loaded, batch, tmp_path / "edited", emit=lambda _: None, trial=1, card={"KL divergence": "0.1"})
    edited = {f"{loaded.writers[i].name}.weight" for i in batch.edits if batch.edits[i].write[1].any()}
    assert edited == {f"model.layers.{i}.self_attn.o_proj.weight" for i in (2, 3)}
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
    assert "| KL divergence | 0.1 |" in card
    assert "safety behaviour" in card
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
        export(loaded, edits_for(loaded), tmp_path / "base", emit=lambda _: None)


def test_what_a_killed_export_left_is_removed_and_named(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    (tmp_path / ".edited.partial").mkdir()
    (tmp_path / ".edited.partial" / "half").write_text("half")
    events: list = []
    folder = export(loaded, edits_for(loaded), tmp_path / "edited", emit=events.append)
    assert not (folder / "half").exists()
    assert "left by an export that was cut off" in events[0].text


def test_without_room_nothing_is_begun(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    with (tmp_path / "base" / "huge.json").open("wb") as stream:
        stream.truncate(2**42)  # sparse: four TiB that take no room
    with pytest.raises(ExportFailed, match=r"needs 4\.0 TiB"):
        export(loaded, edits_for(loaded), tmp_path / "edited", emit=lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, hard)
    )  # the system refuses the bytes after that, as a full disk does
    try:
        with pytest.raises(ExportFailed, match="could not be written"):
            export(loaded, edits_for(loaded), tmp_path / "edited", emit=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_an_edit_that_overflows_the_data_type_is_refused(tmp_path: Path) -> None:
    loaded = saved("llama", tmp_path / "base", torch.float16)
    batch = edits_for(loaded)
    index, edit = next(iter(batch.edits.items()))
    assert edit.input_scale is not None
    huge = EditBatch(1, {index: type(edit)(edit.input_scale * 1e7, edit.read, edit.write, None)}, (0,))
    with pytest.raises(ExportFailed, match=r"o_proj\.weight overflow"):
        export(loaded, huge, tmp_path / "edited", emit=lambda _: None)
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
        export(loaded, edits_for(loaded), tmp_path / "edited", emit=lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path / "base")
    other = loaded_model("llama", intermediate_size=64)
    with pytest.raises(InputError, match=r"has shape \[48, 80\], the model has \[48, 64\]"):
        stored_writers(tmp_path / "base", other.writers)
