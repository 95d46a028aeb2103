"""Models of real shapes with random weights, and prompts of real lengths: what speed depends on, without a download.

Not a benchmark itself; `trials.py`, `capture.py`, `switch.py` and `workers.py` measure on these.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from bruno.engine.edits.trial import Kernel, TrialEdit
from bruno.engine.model.architectures import COMPONENTS, find_writers
from bruno.engine.model.chat_format import EncodedPrompts
from bruno.engine.model.fusing import fuse
from bruno.engine.model.loading import LoadedModel

SHAPES: dict[str, dict[str, int | bool]] = {
    # name: (hidden, blocks, heads, key-value heads, inner, vocabulary) of the published configurations
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "intermediate_size": 160, "vocab_size": 512},
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                 "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "1.5b": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
                 "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
               "intermediate_size": 18944, "vocab_size": 152064},
    "32b": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
                "intermediate_size": 27648, "vocab_size": 152064},
}  # fmt: skip
"""Qwen2 and Qwen2.5 shapes."""


class Words:
    """Stands for a tokenizer where no text is read: ids as decimal numbers."""

    pad_token_id = 0
    eos_token_id = None

    def batch_decode(self, rows: list[list[int]], **_options: object) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def shape_model(name: str, device: str = "auto", dtype: torch.dtype | None = None) -> LoadedModel:
    """A Qwen2 model of this shape on the device, its weights drawn there: as wide as trained ones, seeded."""
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    config = Qwen2Config(**SHAPES[name], max_position_embeddings=32768, eos_token_id=None, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=place)
    generator = torch.Generator(place).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0)
        for module_name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if module_name.endswith("rotary_emb"):  # its frequencies are a buffer, which the meta device has emptied
                fresh = type(module)(config=config)
                module.inv_freq = fresh.inv_freq.to(place)
                module.original_inv_freq = module.inv_freq
    model.tie_weights()
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    lean = fuse(model, find_writers(model), lambda event: print(event, file=sys.stderr))
    return LoadedModel(
        model=model, tokenizer=Words(), device=place, dtype=dtype, source=Path(), name=name, family="qwen2",  # type: ignore[arg-type]
        writers=find_writers(model), layers=config.num_hidden_layers, hidden_size=config.hidden_size,
        default_rows=32 if place.type == "cpu" else 128, lean=lean,
    )  # fmt: skip


def prompts(count: int, vocabulary: int, *, length: int = 53, prefix: int = 20, seed: int = 0) -> EncodedPrompts:
    """Prompts of about `length` tokens (a third shorter to a third longer), of which the first `prefix` are the chat
    template's and the same in all (Qwen2's own: `<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n...`)."""
    generator = random.Random(seed)
    head = [generator.randrange(1, vocabulary) for _ in range(prefix)]
    spread = (length - prefix) // 3
    return EncodedPrompts(
        tuple(
            (*head, *(generator.randrange(1, vocabulary) for _ in range(length - prefix + generator.randint(-spread, spread))))
            for _ in range(count)
        ),
        0,
    )  # fmt: skip


def random_trial(generator: random.Random, layers: int) -> TrialEdit:
    """A trial as the search's space draws it."""
    last = layers - 1
    kernels = {
        name: Kernel(
            generator.uniform(-0.25 if name.startswith("mlp.") else 0.8, 1.5),
            generator.uniform(0.6, 1.0) * last,
            generator.random(),
            generator.uniform(1, max(1, 0.6 * last)),
        )
        for name in COMPONENTS
    }
    return TrialEdit("global", generator.uniform(0.4, 0.9) * last, kernels)


def timed(work: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """The work's result and its wall seconds, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - began


def about(device: torch.device) -> dict[str, object]:
    """The machine and the versions, as every benchmark's line begins."""
    return {
        "machine": machine(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.cpu.get_capabilities().get('cpu_name', platform.processor())}, {torch.get_num_threads()} threads"


def parser(about_it: str | None) -> argparse.ArgumentParser:
    """With the options that all of them have."""
    made = argparse.ArgumentParser(description=about_it, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    made.add_argument("--device", default="auto")
    made.add_argument("--seed", type=int, default=0)
    return made


def peak(device: torch.device) -> dict[str, float] | None:
    """Most memory in use on the device, and most that torch held, in GB (1e9 bytes); None on a CPU."""
    if device.type != "cuda":
        return None
    return {
        "in_use": round(torch.cuda.max_memory_allocated(device) / 1e9, 2),
        "held": round(torch.cuda.max_memory_reserved(device) / 1e9, 2),
    }
