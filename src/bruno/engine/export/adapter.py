"""The chosen edit as a PEFT adapter (LoRA): a small file that plain `peft` puts on the untouched base model.

What an edit adds to a weight, W' - W, has the rank of its directions only when no norm is kept: then the adapter is
exact. With norms kept every entry of W changes, and W' - W is close to low rank but not of it. Such an adapter is
written only when a rank was asked for: the best one of that rank (Eckart and Young, 1936), with its error stated for
each module. Either way the adapter on disk is loaded with peft onto the model and compared with the searched edit.
Writes one folder; the model is as before when it returns.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.algebra import WriterEdit
from bruno.engine.edits.bake import bake_bias, bake_weight
from bruno.engine.edits.build import EditRules, TrialEdit, build_edits, edit_weight, is_edited
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit, Fallback, Notice
from bruno.engine.export.card import Card, card_of, write_card
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.engine.model.checkpoint import StoredTensor, stored_writers
from bruno.engine.model.generate import first_token_logprobs, prepare
from bruno.engine.model.loading import LoadedModel
from bruno.engine.scoring.scores import kl_divergence
from bruno.errors import BrunoError, InputError

if TYPE_CHECKING:
    from bruno.engine.run import Run
    from bruno.engine.search.study import FinishedTrial

EXACT = 1e-5
"""Relative error up to which a module's factors are its edit: what fp32 leaves."""


@dataclass(frozen=True)
class Factors:
    """One module's share of an adapter: W' - W = up @ down, b' - b = bias.

    Attributes:
        name: the module's dotted name.
        down: [r, d_in] fp32 (lora_A). up: [d, r] fp32 (lora_B). bias: [d] fp32, None where the module has none.
        error: |W' - W - up @ down| / |W' - W|, Frobenius norms; 0 where nothing changes.
    """

    name: str
    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None
    error: float


@dataclass(frozen=True)
class Adapter:
    """What was written: the folder, its rank, the largest error of a module, and KL(searched || adapter) in nats."""

    folder: Path
    rank: int
    error: float
    kl: float


def save_adapter(run: Run, chosen: FinishedTrial, rule: str, saved: Path) -> Adapter | None:
    """Write a trial's adapter beside its saved model, as `NAME-adapter`, unless it lies there already.

    Raises:
        BrunoError: as `write_adapter`.
    """
    folder = saved.with_name(f"{saved.name}-adapter")
    if folder.is_dir():
        run.emit(Notice(text=f"The adapter of trial {chosen.number} was saved before: {folder}"))
        return None
    data = run.settings.data
    return write_adapter(
        run.loaded,
        run.space.edit(chosen.parameters),
        run.directions,
        run.rules,
        folder,
        prompts=encode(
            run.loaded.tokenizer,
            run.prompts.good_search,
            system_prompt=data.system_prompt,
            max_tokens=data.max_prompt_tokens,
        ),
        card=card_of(run, chosen, rule),
        emit=run.emit,
        rank=run.settings.export.adapter_rank,
    )


def write_adapter(
    loaded: LoadedModel,
    trial: TrialEdit,
    directions: DirectionSet,
    rules: EditRules,
    folder: Path,
    *,
    prompts: EncodedPrompts,
    card: Card,
    emit: Emit,
    rank: int = 0,
) -> Adapter | None:
    """Write the edit as an adapter to `folder`, which must not exist yet. Call with no session active.

    Args:
        trial, directions, rules: the edit, as `export` is given it.
        prompts: ordinary prompts that adapter and searched edit are compared on.
        rank: of the adapter where no exact one exists; 0 writes exact ones only.

    Returns:
        What was written; None when this edit has no adapter (a `Fallback` says why).

    Raises:
        InputError: the folder exists.
        BrunoError: an exact adapter does not do what the search did, or the disk failed.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already", fix="Move it away")
    reason = why_none(loaded, rules, rank)
    if reason:
        emit(Fallback(method="adapter", reason=reason, instead="the saved model alone"))
        return None
    factors = adapter_factors(loaded, trial, directions, rules, rank)
    if not factors:
        emit(Fallback(method="adapter", reason="this trial edits nothing", instead="the saved model alone"))
        return None
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save(factors, loaded, partial)
        kl = _distance(loaded, trial, directions, rules, prompts, partial, emit)
        largest = max(each.error for each in factors)
        if largest <= EXACT and kl > 1e-3:
            raise BrunoError(f"The adapter differs from the searched edit by {kl:.4f} nats; it was not kept")
        notes = _notes(factors, kl)
        write_card(partial, replace(card, library="peft", notes={**card.notes, **notes}), name=folder.name)
        partial.rename(folder)
    except OSError as error:
        raise BrunoError(f"The adapter could not be written to {folder} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    emit(Notice(text=f"Adapter saved: {folder} ({'; '.join(f'{name}: {value}' for name, value in notes.items())})"))
    return Adapter(folder, factors[0].down.shape[0], largest, kl)


def why_none(loaded: LoadedModel, rules: EditRules, rank: int) -> str:
    """Why this run's edits cannot be an adapter, "" when they can."""
    odd = sorted({type(w.module).__name__ for w in loaded.writers if not isinstance(w.module, nn.Linear | Conv1D)})
    if odd:
        return f"PEFT's LoRA has no form for the edit of {', '.join(odd)}"
    if rules.router and any(writer.mixture is not None for writer in loaded.writers):
        return "edited routers are not part of a LoRA"
    if rules.norm_mode != "none" and not rank:
        return f"norm_mode {rules.norm_mode} changes whole weights; export.adapter_rank allows the closest adapter"
    return ""


@torch.inference_mode()
def adapter_factors(
    loaded: LoadedModel, trial: TrialEdit, directions: DirectionSet, rules: EditRules, rank: int
) -> list[Factors]:
    """The factors of every writer that the trial edits, computed from the stored weights, all of one rank."""
    found: list[Factors] = []
    for stored in stored_writers(loaded.source, loaded.writers):
        writer = loaded.writers[stored.index]
        if not is_edited(trial, directions, rules, writer, stored.expert):
            continue
        weight = _read(loaded.source, stored.weight).to(loaded.device).float()
        weight = weight.T if writer.transposed else weight
        edit = edit_weight(weight, [trial], directions, rules, writer)
        change = bake_weight(weight, edit) - weight
        up, down = _exact(weight, edit) if _is_low_rank(edit) else _closest(change, rank)
        whole = torch.linalg.matrix_norm(change)
        error = float(torch.linalg.matrix_norm(change - up @ down) / whole) if whole > 0 else 0.0
        bias = None
        if stored.bias is not None:
            before = _read(loaded.source, stored.bias).to(loaded.device).float()
            bias = (bake_bias(before, edit) - before).cpu()
        found.append(Factors(writer.name, down.cpu(), up.cpu(), bias, error))
    largest = max((each.down.shape[0] for each in found), default=0)
    return [_padded(each, largest) for each in found]


def _is_low_rank(edit: WriterEdit) -> bool:
    return edit.input_scale is None and edit.output_scale is None


def _exact(weight: torch.Tensor, edit: WriterEdit) -> tuple[torch.Tensor, torch.Tensor]:
    """W' - W = write^T (read W) + input_write^T input_read, as (up, down)."""
    up, down = [edit.write[0].T], [edit.read[0] @ weight]
    if edit.input_read is not None and edit.input_write is not None:
        # Hooks add the second term to the product of the first: A = I + write^T read acts on W alone, as in `bake`.
        through = edit.input_write[0].T
        up.append(through + edit.write[0].T @ (edit.read[0] @ through))
        down.append(edit.input_read[0])
    return torch.cat(up, dim=1), torch.cat(down)


def _closest(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of this rank, as (up, down): randomised SVD (Halko et al. 2011, arXiv:0909.4061)."""
    rank = min(rank, *change.shape)
    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(rank + 16, *change.shape), niter=4)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:, :rank].T


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.down.shape[0]
    down = nn.functional.pad(factors.down, (0, 0, 0, missing)).contiguous()
    return replace(factors, down=down, up=nn.functional.pad(factors.up, (0, missing)).contiguous())


def _read(source: Path, stored: StoredTensor) -> torch.Tensor:
    with safe_open(source / stored.file, framework="pt") as file:
        return file.get_tensor(stored.key)


def _save(factors: Sequence[Factors], loaded: LoadedModel, folder: Path) -> None:
    """`adapter_config.json` through peft, and the factors under the names that it gives them."""
    from peft import LoraConfig, TaskType

    rank, biased = factors[0].down.shape[0], any(each.bias is not None for each in factors)
    LoraConfig(
        r=rank,
        lora_alpha=rank,  # peft scales by alpha / r
        target_modules=[each.name for each in factors],
        task_type=TaskType.CAUSAL_LM,
        lora_bias=biased,
        fan_in_fan_out=isinstance(loaded.writers[0].module, Conv1D),
        inference_mode=True,
        base_model_name_or_path=loaded.name if loaded.name.count("/") == 1 else str(loaded.source),
    ).save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for each in factors:
        prefix = f"base_model.model.{each.name}"
        tensors[f"{prefix}.lora_A.weight"] = each.down
        tensors[f"{prefix}.lora_B.weight"] = each.up
        if biased:
            tensors[f"{prefix}.lora_B.bias"] = each.bias if each.bias is not None else each.up.new_zeros(len(each.up))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _distance(
    loaded: LoadedModel,
    trial: TrialEdit,
    directions: DirectionSet,
    rules: EditRules,
    prompts: EncodedPrompts,
    adapter: Path,
    emit: Emit,
) -> float:
    """KL(searched || adapter) of the first answer token, nats, mean over prompts: hooks against peft's own layers."""
    with EditSession(loaded.writers, max_trials=1) as session:
        prepared = prepare(loaded, prompts, emit=emit)
        session.write(build_edits([trial], directions, loaded.writers, rules))
        searched = first_token_logprobs(loaded, prepared, session=session)[0]
    with _wearing(loaded, adapter):
        worn = first_token_logprobs(loaded, prepare(loaded, prompts, emit=emit))[0]
    return kl_divergence(searched, worn)


@contextmanager
def _wearing(loaded: LoadedModel, adapter: Path) -> Iterator[None]:
    """The model with the adapter put on in place, and taken off again whatever happens."""
    from peft import PeftModel

    worn = PeftModel.from_pretrained(loaded.model, str(adapter)).eval()
    try:
        yield
    finally:
        worn.unload()


def _notes(factors: Sequence[Factors], kl: float) -> dict[str, str]:
    errors = sorted(each.error for each in factors)
    rank = factors[0].down.shape[0]
    notes = {"Adapter": f"LoRA of rank {rank} on {len(factors)} modules"}
    if errors[-1] <= EXACT:
        notes["Exactness"] = "the edit itself, to fp32 rounding"
    else:
        middle = errors[len(errors) // 2]
        notes["Exactness"] = (
            f"approximate: each module's change of weight is off by {100 * errors[0]:.2g} to {100 * errors[-1]:.2g} % "
            f"(median {100 * middle:.2g} %, Frobenius norms)"
        )
        notes |= {f"Error of {each.name}": f"{100 * each.error:.3g} %" for each in factors}
    return notes | {"KL divergence from the searched edit, first token": f"{kl:.2g} nats"}
