"""Tiny random models of real architectures, built from transformers configs, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bruno.engine.model.architectures import decoder_config, find_writers
from bruno.engine.model.loading import LoadedModel

VOCABULARY = 300
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GROUPED = {"num_key_value_heads": 2}
HEADS = {"head_dim": 16}
CONFIGS: dict[str, dict] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, **HEADS},
    "gemma2": {**GROUPED, **HEADS, "sliding_window": 16},
    "gemma3_text": {**GROUPED, **HEADS, "sliding_window": 16},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "granite": {**GROUPED, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
    "gpt_neox": {"rotary_pct": 0.25},
}
"""Every family of the table, with what is peculiar to it."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A random model; norms' gains and biases are random too, so that a forgotten one shows."""
    config = AutoConfig.for_model(kind, **{**COMMON, **CONFIGS.get(kind, {}), **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_((0.3 * noise).to(dtype))
        else:
            parameter.copy_((noise / parameter.shape[-1] ** 0.5 * (3.0 if "embed" in name else 1.0)).to(dtype))
    model.generation_config.eos_token_id = 2
    return model


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level: every text is tokens, and its own again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.padding_side = "left"
    fast.chat_template = chat_template
    return fast


def loaded_model(kind: str, source: Path = Path(), **changes: object) -> LoadedModel:
    """What `loading.load` would return, for a tiny model that lies in no folder."""
    model = tiny_model(kind, **changes)
    config = decoder_config(model)
    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        device=torch.device("cpu"),
        dtype=model.dtype,
        source=source,
        name=kind,
        family=config.model_type,
        writers=find_writers(model),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        default_rows=8,
    )
