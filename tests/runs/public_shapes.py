"""Public models written down: their config.json (what matters of it) and the tensors of their safetensors files.

The tensors follow the repositories' own names and shapes, not transformers' (which fuses experts when it loads).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

QWEN2 = {"model_type": "qwen2", "torch_dtype": "bfloat16", "use_sliding_window": False, "sliding_window": 131072}
CONFIGS: dict[str, dict] = {
    "Qwen/Qwen2.5-7B-Instruct": QWEN2
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "Qwen/Qwen2.5-32B-Instruct": QWEN2
    | {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "vocab_size": 32000,
    },
    "moonshotai/Moonlight-16B-A3B-Instruct": {
        "model_type": "deepseek_v3",
        "hidden_size": 2048,
        "intermediate_size": 11264,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 163840,
    },
    "openai/gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "sliding_window": 128,
        "vocab_size": 201088,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "google/gemma-2-9b-it": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
}
PUBLISHED = {  # billions of parameters, from the models' cards or papers
    "Qwen/Qwen2.5-7B-Instruct": 7.61,
    "Qwen/Qwen2.5-32B-Instruct": 32.5,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.7,
    "moonshotai/Moonlight-16B-A3B-Instruct": 15.96,  # what the hub counts; the card rounds to 16
    "openai/gpt-oss-20b": 20.91,
    "google/gemma-2-9b-it": 9.24,
}
WIDTHS = {"BF16": 2, "F32": 4, "U8": 1, "F16": 2}


def tensors(config: dict) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, safetensors data type, shape) of every tensor in the repository."""
    d, family = config["hidden_size"], config["model_type"]
    yield "model.embed_tokens.weight", "BF16", (config["vocab_size"], d)
    if family != "gemma2":  # tied
        yield "lm_head.weight", "BF16", (config["vocab_size"], d)
    yield "model.norm.weight", "BF16", (d,)
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if family == "gemma2" else []
        for norm in norms:
            yield f"{at}.{norm}.weight", "BF16", (d,)
        yield from _attention(config, f"{at}.self_attn")
        yield from _mlp(config, at, block)


def _attention(config: dict, at: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    d, heads, family = config["hidden_size"], config["num_attention_heads"], config["model_type"]
    if "kv_lora_rank" in config:
        latent, rope, nope = config["kv_lora_rank"], config["qk_rope_head_dim"], config["qk_nope_head_dim"]
        yield f"{at}.q_proj.weight", "BF16", (heads * (nope + rope), d)
        yield f"{at}.kv_a_proj_with_mqa.weight", "BF16", (latent + rope, d)
        yield f"{at}.kv_a_layernorm.weight", "BF16", (latent,)
        yield f"{at}.kv_b_proj.weight", "BF16", (heads * (nope + config["v_head_dim"]), latent)
        yield f"{at}.o_proj.weight", "BF16", (d, heads * config["v_head_dim"])
        return
    size = config.get("head_dim", d // heads)
    for name, count in (("q", heads), ("k", config["num_key_value_heads"]), ("v", config["num_key_value_heads"])):
        yield f"{at}.{name}_proj.weight", "BF16", (count * size, d)
        if family in ("qwen2", "gpt_oss"):
            yield f"{at}.{name}_proj.bias", "BF16", (count * size,)
    yield f"{at}.o_proj.weight", "BF16", (d, heads * size)
    if family == "gpt_oss":
        yield f"{at}.o_proj.bias", "BF16", (d,)
        yield f"{at}.sinks", "BF16", (heads,)


def _mlp(config: dict, at: str, block: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    d, wide = config["hidden_size"], config["intermediate_size"]
    match config["model_type"]:
        case "mixtral":
            yield f"{at}.block_sparse_moe.gate.weight", "BF16", (config["num_local_experts"], d)
            for expert in range(config["num_local_experts"]):
                for name, shape in (("w1", (wide, d)), ("w2", (d, wide)), ("w3", (wide, d))):
                    yield f"{at}.block_sparse_moe.experts.{expert}.{name}.weight", "BF16", shape
        case "deepseek_v3" if block >= config["first_k_dense_replace"]:
            small = config["moe_intermediate_size"]
            yield f"{at}.mlp.gate.weight", "BF16", (config["n_routed_experts"], d)
            yield f"{at}.mlp.gate.e_score_correction_bias", "F32", (config["n_routed_experts"],)
            for expert in range(config["n_routed_experts"]):
                yield from _gated(f"{at}.mlp.experts.{expert}", d, small)
            yield from _gated(f"{at}.mlp.shared_experts", d, small * config["n_shared_experts"])
        case "gpt_oss":
            experts = config["num_local_experts"]
            yield f"{at}.mlp.router.weight", "BF16", (experts, d)
            yield f"{at}.mlp.router.bias", "BF16", (experts,)
            for name, rows in (("gate_up_proj", 2 * wide), ("down_proj", d)):
                yield f"{at}.mlp.experts.{name}_blocks", "U8", (experts, rows, d // 32, 16)
                yield f"{at}.mlp.experts.{name}_scales", "U8", (experts, rows, d // 32)
                yield f"{at}.mlp.experts.{name}_bias", "BF16", (experts, rows)
        case _:
            yield from _gated(f"{at}.mlp", d, wide)


def _gated(at: str, d: int, wide: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{at}.gate_proj.weight", "BF16", (wide, d)
    yield f"{at}.up_proj.weight", "BF16", (wide, d)
    yield f"{at}.down_proj.weight", "BF16", (d, wide)


def header(config: dict, own: list | None = None) -> tuple[bytes, int]:
    """The beginning of a safetensors file with all tensors, or these: length, JSON; and how many bytes of weights follow."""
    entries, at = {}, 0
    for name, dtype, shape in own or tensors(config):
        size = math.prod(shape) * WIDTHS[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text, at
