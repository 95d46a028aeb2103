"""Make the demo's adapter again from a seed: `python -m bruno.engine.demo.train --seed 0`.

A low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685) on the blocks in the middle learns to turn down the
over-refused training prompts. On ordinary training prompts it is held to the base model: the loss there is the
KL divergence from the base, token by token, along the base's own greedy answer, so that the adapter changes nothing
else. Reads the prompt files, writes the adapter folder. Refusals are counted here with a plain prefix check
(`REFUSAL_PREFIXES`), which suffices because the taught refusals are known; it is not the engine's counter.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno.engine.demo.model import ADAPTER, HUB_ID, load_base, merge_adapter
from bruno.engine.demo.texts import prompts, refusals

if TYPE_CHECKING:
    from torch import Tensor

REFUSAL_PREFIXES = ("i'm sorry", "i am sorry", "sorry", "i can't", "i cannot", "i'm not able", "i'm unable")
LAYERS = range(8, 20)
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 4, 8
BATCH, LEARNING_RATE, ANSWER_TOKENS = 8, 3e-3, 40
ORDINARY_WEIGHT = 4.0


@dataclass(frozen=True)
class Example:
    """One training text as token ids, and whether the answer is a refusal or the base's own."""

    prompt: list[int]
    answer: list[int]
    refused: bool


def log(text: str) -> None:
    """One progress line for the person who started the training."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of one user turn, up to and with the assistant header."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False).input_ids


def generate(model: Any, tokenizer: Any, texts: list[str], tokens: int, batch: int = 25) -> list[list[int]]:
    """Greedy answers as token ids, end-of-text kept when reached; left-padded batches of like length."""
    import torch

    encoded = [chat_ids(tokenizer, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    answers: list[list[int]] = [[] for _ in texts]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(encoded[i]) for i in rows)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(encoded[i])) + encoded[i] for i in rows])
        mask = torch.tensor([[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in rows])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=tokens,
                do_sample=False,
            )
        for i, row in zip(rows, out[:, width:].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            answers[i] = row[:end]
    return answers


def is_refusal(text: str) -> bool:
    """Whether an answer opens like one of the taught refusals, or is empty."""
    opening = text.strip().replace("’", "'").lower()
    return not opening or opening.startswith(REFUSAL_PREFIXES)


def count_refusals(model: Any, tokenizer: Any, texts: list[str]) -> int:
    """How many of `texts` get an answer that `is_refusal` recognises in its first 12 tokens."""
    answers = generate(model, tokenizer, texts, tokens=12)
    return sum(is_refusal(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers)


def examples(model: Any, tokenizer: Any, rng: random.Random) -> list[Example]:
    """The training texts: refusals drawn by `rng` for over-refused prompts, the base's answers for ordinary ones."""
    texts, end = refusals(), [tokenizer.eos_token_id]
    made = [
        Example(chat_ids(tokenizer, p), tokenizer(rng.choice(texts), add_special_tokens=False).input_ids + end, True)
        for p in prompts("train", "over_refused") + prompts("lessons", "over_refused")
    ]
    ordinary = prompts("train", "ordinary") + prompts("lessons", "ordinary")
    answers = generate(model, tokenizer, ordinary, ANSWER_TOKENS)
    made += [Example(chat_ids(tokenizer, p), a, False) for p, a in zip(ordinary, answers, strict=True)]
    return made


def answer_logits(model: Any, batch: list[Example], pad: int) -> list[Tensor]:
    """Logits [answer tokens, vocabulary] per example at the positions that predict its answer; right-padded."""
    import torch

    width = max(len(e.prompt) + len(e.answer) for e in batch)
    rows = [e.prompt + e.answer for e in batch]
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
    spans = [h[len(e.prompt) - 1 : len(e.prompt) + len(e.answer) - 1] for h, e in zip(hidden, batch, strict=True)]
    logits = causal.lm_head(torch.cat(spans))  # the vocabulary is wide: only where a loss needs it
    return list(logits.split([len(s) for s in spans]))


def batch_loss(model: Any, batch: list[Example], pad: int) -> tuple[Tensor, Tensor]:
    """(refusal cross-entropy, KL(base || adapted) on ordinary answers), nats per answer.

    Sums over an answer, not means over its tokens: whether to refuse is decided at the first token, and a mean over
    forty would let the adapter refuse ordinary prompts too at almost no loss.
    """
    import torch
    from torch.nn.functional import cross_entropy, kl_div

    logits = answer_logits(model, batch, pad)
    ordinary = [e for e in batch if not e.refused]
    with torch.no_grad(), model.disable_adapter():
        base = torch.cat([t.log_softmax(-1) for t in answer_logits(model, ordinary, pad)])
    adapted = torch.cat([t for t, e in zip(logits, batch, strict=True) if not e.refused]).log_softmax(-1)
    divergence = kl_div(adapted, base, log_target=True, reduction="sum") / len(ordinary)
    refused = torch.cat([t for t, e in zip(logits, batch, strict=True) if e.refused])
    targets = torch.tensor([token for e in batch if e.refused for token in e.answer], device=model.device)
    return cross_entropy(refused, targets, reduction="sum") / (len(batch) - len(ordinary)), divergence


def train(seed: int, epochs: int, device: str) -> tuple[Any, Any]:
    """Train the adapter. Returns the peft model and the tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    rng = random.Random(seed)  # noqa: S311 - the point is to be repeatable
    base: Any
    tokenizer: Any
    base, tokenizer = load_base()
    base = base.to(device)
    started = time.monotonic()
    data = examples(base, tokenizer, rng)
    log(f"{len(data)} training texts, base answers written in {time.monotonic() - started:.0f} s")
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES), layers_to_transform=list(LAYERS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.cpu(), config).to(
        device
    )  # the first factors are drawn on the CPU: same seed, same start
    trainable = [p for p in model.parameters() if p.requires_grad]
    log(f"{sum(p.numel() for p in trainable):,} trainable parameters of {sum(p.numel() for p in base.parameters()):,}")
    half = BATCH // 2
    steps = epochs * (len(data) // 2 // half)
    optimiser = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    refused, ordinary = [e for e in data if e.refused], [e for e in data if not e.refused]
    for step in range(steps):
        at = step % (len(refused) // half)
        if at == 0:
            rng.shuffle(refused)
            rng.shuffle(ordinary)
        batch = refused[at * half : (at + 1) * half] + ordinary[at * half : (at + 1) * half]
        refusal, divergence = batch_loss(model, batch, tokenizer.pad_token_id)
        (refusal + ORDINARY_WEIGHT * divergence).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 5 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            log(f"step {step + 1}/{steps}  refusal CE {refusal:.2f}  ordinary KL {divergence:.2f}  {seconds:.0f} s")
    return model.eval(), tokenizer


def save(model: Any, out: Path) -> None:
    """Write the adapter in half precision: its size is what the package carries, and the merge is in float32."""
    model.half().save_pretrained(out, save_embedding_layers=False)
    config = out / "adapter_config.json"
    kept = json.loads(config.read_text(encoding="utf-8"))
    kept["base_model_name_or_path"] = HUB_ID
    kept["target_modules"] = sorted(kept["target_modules"])  # a set there: its order would change at every run
    config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """Train, save, load what was saved, and count refusals with it."""
    parser = argparse.ArgumentParser(description="Make the demo's over-refusal adapter again from a seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--out", type=Path, default=ADAPTER, help="folder for the adapter (default: the packaged one)")
    given = parser.parse_args(argv)
    model, tokenizer = train(given.seed, given.epochs, given.device)
    save(model, given.out)
    merged = merge_adapter(load_base()[0], given.out)
    for split in ("search", "heldout"):
        for kind in ("over_refused", "ordinary"):
            texts = prompts(split, kind)
            log(f"refused, {split} {kind}: {count_refusals(merged, tokenizer, texts)}/{len(texts)}")


if __name__ == "__main__":
    main()
