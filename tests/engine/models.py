"""Tiny random models of real architectures, built from transformers configs, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bruno.engine.edits.bake import bake_bias, bake_router, bake_weight
from bruno.engine.edits.build import EditBatch
from bruno.engine.model.architectures import decoder_config, find_mixtures, find_writers
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
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_TOWER = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4}
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
    "gemma": {**GROUPED, **HEADS},
    "olmo3": {**GROUPED, "sliding_window": 16},
    "glm4": {**GROUPED, **HEADS},
    "ministral3": {**GROUPED, **HEADS, "sliding_window": None},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
    "qwen3_moe": {**GROUPED, **HEADS, **EXPERTS, "norm_topk_prob": True},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
    "gpt_oss": {**GROUPED, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "qwen3_next": {**GROUPED, **HEADS, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 40},
    "qwen3_5_text": {**GROUPED, **HEADS, **DELTA},
    "qwen3_5_moe_text": {**GROUPED, **HEADS, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 40},
}
"""Every family of the table, with what is peculiar to it."""
VISION: dict[str, dict] = {
    "gemma3": {"text_config": {**COMMON, **CONFIGS["gemma3_text"]}, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
    "mistral3": {
        "text_config": {**COMMON, **CONFIGS["mistral"], "model_type": "mistral"},
        "vision_config": {**SIGLIP, "model_type": "pixtral", "head_dim": 8},
    },
    "llava": {
        "text_config": {**COMMON, **CONFIGS["llama"], "model_type": "llama"},
        "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
        "image_token_index": 299,
    },
    "qwen2_vl": {"text_config": {**COMMON, **GROUPED, **SECTIONS}, "vision_config": QWEN_TOWER},
    "qwen2_5_vl": {"text_config": {**COMMON, **GROUPED, **SECTIONS}, "vision_config": QWEN_TOWER},
    "qwen3_5": {
        "text_config": {**COMMON, **CONFIGS["qwen3_5_text"]},
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16},
    },
    "qwen3_5_moe": {
        "text_config": {**COMMON, **CONFIGS["qwen3_5_moe_text"]},
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16},
    },
}
"""Models with a tower around a decoder of the table; only their text part is run."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A random model; norms' gains and biases are random too, so that a forgotten one shows."""
    if kind in VISION:
        config = AutoConfig.for_model(kind, **{**VISION[kind], **changes})
        if kind.startswith("qwen"):
            config.vision_config.out_hidden_size = config.text_config.hidden_size
            if kind == "qwen2_vl":  # there `hidden_size` is the language model's
                config.vision_config.hidden_size = config.text_config.hidden_size
    else:
        config = AutoConfig.for_model(kind, **{**COMMON, **CONFIGS.get(kind, {}), **changes})
    torch.manual_seed(seed)
    auto = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_((0.3 * noise).to(dtype))
        else:
            parameter.copy_((noise / parameter.shape[-1] ** 0.5 * (3.0 if "embed" in name else 1.0)).to(dtype))
    model.generation_config.eos_token_id = 2
    return model


class ExpertModules(nn.Module):
    """A mixture as code that comes with older models has it: a list of small MLPs, tokens sorted by expert."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.gate, self.shared_experts, self.config = fused.gate, fused.shared_experts, fused.config
        self.experts = nn.ModuleList(
            type(fused.shared_experts)(fused.config, 32) for _ in range(fused.experts.num_experts)
        )
        for number, expert in enumerate(self.experts):
            gate, up = fused.experts.gate_up_proj[number].chunk(2)
            for linear, weight in ((expert.gate_proj, gate), (expert.up_proj, up), (expert.down_proj, None)):
                linear.weight.requires_grad_(False).copy_(fused.experts.down_proj[number] if weight is None else weight)
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shape, flat = hidden_states.shape, hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(hidden_states)
        order = chosen.view(-1).argsort()
        tokens, counts = flat[order // chosen.shape[1]], chosen.view(-1).bincount(minlength=len(self.experts)).tolist()
        parts = zip(self.experts, tokens.split(counts), strict=True)
        sorted_out = torch.cat([expert(part) for expert, part in parts if len(part)])
        out = torch.empty_like(sorted_out)
        out[order] = sorted_out
        routed = (out.view(*chosen.shape, -1) * weights[..., None]).sum(1).to(flat.dtype)
        return routed.view(shape) + self.shared_experts(hidden_states)


def experts_as_modules(model: PreTrainedModel) -> PreTrainedModel:
    """The same DeepSeek-V3 model with one module for each expert."""
    for block in model.model.layers:
        if hasattr(block.mlp, "experts"):
            block.mlp = ExpertModules(block.mlp)
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


@torch.inference_mode()
def bake_into(loaded: LoadedModel, batch: EditBatch, trial: int) -> None:
    """Change the live weights, biases and routers as one trial's edit says: experts one at a time."""
    for index, edit in batch.edits.items():
        writer = loaded.writers[index]
        weight = loaded.model.get_parameter(writer.weight_name)
        bias = loaded.model.get_parameter(writer.bias_name) if writer.bias_name else None
        for expert in range(writer.experts or 1):
            own = edit.of_expert(expert) if writer.experts else edit
            part = weight[expert] if writer.experts else weight
            part.copy_(bake_weight(part, own, trial, transposed=writer.transposed))
            if bias is not None:
                part = bias[expert] if writer.experts else bias
                part.copy_(bake_bias(part, own, trial))
    for mixture in find_mixtures(loaded.writers):
        if mixture.layer in batch.routers:
            weight = loaded.model.get_parameter(f"{mixture.router_name}.weight")
            weight.copy_(bake_router(weight, batch.routers[mixture.layer], trial))


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
