"""How each family of models writes to its residual stream: an explicit table. Data, no behaviour.

A family is listed when a tiny random model of it passes every test of writers, edits and export. What is not listed is
discovered where it is a plain dense decoder (`architectures.py`), and refused by name where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MixtureLayout:
    """Where a block with a mixture of experts keeps its parts; dotted paths relative to `module`.

    `experts` is either one module that holds all experts' weights in 3-D parameters (transformers 5), or a list of one
    small MLP for each expert (older code that comes with a model).

    Attributes:
        module: the mixture, relative to its block.
        experts: the routed experts.
        router: the module whose weight [E, d] scores the experts.
        shared: down projection of the expert that every token passes, "" where the family has none.
        down: down projection of one expert, where experts are modules of their own.
    """

    module: str = "mlp"
    experts: str = "experts"
    router: str = "gate"
    shared: str = ""
    down: str = "down_proj"


@dataclass(frozen=True)
class Family:
    """Where one family keeps its writers; dotted paths, those after `blocks` relative to one block.

    Attributes:
        blocks: the decoder blocks, relative to the model with its head.
        attention: the attention's output projection.
        linear_attention: the output projection of blocks with linear attention, "" where there are none.
        mlp: the dense MLP's down projection.
        mixture: the mixture of experts that stands in some or all blocks instead of the dense MLP.
        attention_norm: norm that the attention's output passes before it is added ("" = none).
        mlp_norm: the same for the MLP's output.
        gain_offset: added to that norm's weight to give its gain (Gemma stores g - 1).
    """

    blocks: str = "model.layers"
    attention: str = "self_attn.o_proj"
    linear_attention: str = ""
    mlp: str = "mlp.down_proj"
    mixture: MixtureLayout | None = None
    attention_norm: str = ""
    mlp_norm: str = ""
    gain_offset: float = 0.0


_LLAMA = Family()  # h + attn(norm(h)), h + mlp(norm(h)); no bias or a bias on the projection
_GEMMA = Family(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm", gain_offset=1.0)
_OLMO = Family(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm")
_GLM = Family(attention_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm")
_NEOX = Family(blocks="gpt_neox.layers", attention="attention.dense", mlp="mlp.dense_4h_to_h")
_MIXTURE = Family(mixture=MixtureLayout())
_QWEN_SHARED = MixtureLayout(shared="shared_expert.down_proj")  # its output is scaled by sigmoid(shared_expert_gate x)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # also SmolLM2, Yi, DeepSeek's and Hermes' Llama distillations
    "mistral": _LLAMA,
    "ministral3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,  # fused qkv and gate_up projections read the stream; the writers are the usual two
    "granite": _LLAMA,  # both outputs are scaled by residual_multiplier, a scalar: the direction stays
    "gemma": _LLAMA,  # the first generation has no norms behind its writers
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "glm4": _GLM,
    "gpt_neox": _NEOX,  # parallel residual: h + attn + mlp; both projections have biases
    "mixtral": _MIXTURE,
    "qwen3_moe": _MIXTURE,  # blocks in mlp_only_layers are dense
    "qwen2_moe": Family(mixture=_QWEN_SHARED),
    # Moonlight, DeepSeek-V3 and R1: the first blocks are dense; routed outputs are scaled by routed_scaling_factor
    "deepseek_v3": Family(mixture=MixtureLayout(shared="shared_experts.down_proj")),
    # fused weights are [E, d_ff, d], down projections have biases, the gate is clamped
    "gpt_oss": Family(mixture=MixtureLayout(router="router")),
    # three of four blocks have a gated delta net instead of attention
    "qwen3_next": Family(linear_attention="linear_attn.out_proj", mixture=_QWEN_SHARED),
    "qwen3_5_text": Family(linear_attention="linear_attn.out_proj"),
    "qwen3_5_moe_text": Family(linear_attention="linear_attn.out_proj", mixture=_QWEN_SHARED),
    "qwen2_vl_text": _LLAMA,
    "qwen2_5_vl_text": _LLAMA,
}
"""`model_type` of the decoder's config -> its family. Each is tested on a tiny random model, hook against bake."""

WITH_TOWERS = frozenset({"gemma3", "mistral3", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_5_moe"})
"""`model_type` of models around such a decoder whose towers only make input embeddings: their text part is edited."""

TOWER_BLOCKS = "model.language_model.layers"
"""Where those keep the decoder's blocks."""
