"""A decoder's shape from its config.json: what one token and one row keep in memory. Pure.

Known are the ways in which the engine's families attend: grouped queries, latents (DeepSeek-V2 and V3), windows, and linear
attention beside full attention. A config that says anything else about its cache has no shape here: unknown, not zero.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bruno.engine.model.families import FAMILIES
from bruno.errors import BrunoError

_NESTED = ("text_config", "llm_config", "language_config")
_STRANGE = {
    "a state space": ("mamba_d_state", "ssm_state_size", "state_size", "hybrid_override_pattern", "layers_block_type"),
    "convolutions for attention": ("conv_L_cache", "conv_bias"),
    "keys shared between blocks": ("num_kv_shared_layers", "kv_sharing_modes"),
    "blocks of several shapes": ("block_configs", "per_layer_config", "global_head_dim", "num_global_key_value_heads"),
    "sparse attention with an index": ("index_topk", "index_n_heads"),
    "another kind of linear attention": ("linear_attn_config", "lightning_attn_config", "attn_type_list"),
}
"""What a config may say that changes what is kept, and that nobody here has checked against the library's cache."""
_PLAIN = frozenset({"full_attention", "sliding_attention"})
_LATENT = frozenset({"deepseek_v2", "deepseek_v3"})
_Size = Field(gt=0, lt=10**8)


class UnknownShape(BrunoError):
    """The config does not say, in a way that is known here, what the model keeps in memory."""


class Shape(BaseModel):
    """What the arithmetic needs of a decoder. Sizes are counts of values, not bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    family: str
    """model_type of the decoder's config."""
    listed: bool
    """The engine's table of families has it; what is not listed may be refused once it is loaded."""
    layers: int = _Size
    hidden: int = _Size
    vocabulary: int = _Size
    heads: int = _Size
    head_dim: int = _Size
    """Of keys, as attention reads them."""
    width: int = _Size
    """Widest activation of a token inside a block: the MLP's, or all active experts' together."""
    writer: int = Field(gt=0, lt=10**13)
    """Values of the largest weight that is edited as one: an MLP's down projection, or all experts' of a block."""
    token: int = Field(ge=0, lt=10**9)
    """Values that all blocks keep of each token: keys and values, or latents."""
    row: int = Field(ge=0, lt=10**11)
    """Values that all blocks keep of each row, however long: states of linear attention."""
    dtype: str = ""
    """What the config says of the weights' data type; "" where it says nothing."""
    notes: tuple[str, ...] = ()


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises:
        UnknownShape: it names a kind of cache that is not known here, or lacks a size; which one.
    """
    text = next((config[key] for key in _NESTED if isinstance(config.get(key), dict)), config)
    family = str(text.get("model_type") or config.get("model_type") or "")
    for what, keys in _STRANGE.items():
        if any(text.get(key) for key in keys):
            raise UnknownShape(f"its config ({family or 'no model_type'}) names {what}, whose memory is unknown")
    try:
        return _shape(
            text, family, str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "")
        )
    except (KeyError, TypeError, ZeroDivisionError, ValidationError) as error:
        missing = f"lacks {error}" if isinstance(error, KeyError) else "holds a size that cannot be right"
        raise UnknownShape(f"its config ({family or 'no model_type'}) {missing}") from error


def _shape(text: dict[str, Any], family: str, dtype: str) -> Shape:
    layers, hidden, heads = text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"]
    kinds = _kinds(text, layers)
    head_dim = text.get("head_dim") or hidden // heads
    notes = []
    if text.get("kv_lora_rank"):
        if family not in _LATENT:
            raise UnknownShape(f"its config ({family}) names latent attention, known for DeepSeek-V2 and V3 alone")
        kept, row = text["kv_lora_rank"] + text["qk_rope_head_dim"], 0
        head_dim = text["qk_nope_head_dim"] + text["qk_rope_head_dim"]
        notes.append("keys and values are kept as latents and opened for one block at a time")
    else:
        kept, row = 2 * (text.get("num_key_value_heads") or heads) * head_dim, 0
    linear = kinds.count("linear_attention")
    if linear:
        row = linear * _state(text)
        notes.append(f"{linear} of {layers} blocks keep a state for each row instead of keys")
    if "sliding_attention" in kinds or (text.get("sliding_window") and text.get("use_sliding_window", True)):
        notes.append("windows save nothing: the engine keeps every position, to put rows of several lengths together")
    mlp: int = text.get("intermediate_size") or text["moe_intermediate_size"]
    experts: int = text.get("num_local_experts") or text.get("n_routed_experts") or text.get("num_experts") or 0
    of_expert: int = text.get("moe_intermediate_size") or mlp
    active: int = text.get("num_experts_per_tok") or (text["experts_per_token"] if experts else 0)
    if experts:
        notes.append(f"all {experts} experts of a block are in memory, {active} work on a token")
    return Shape(
        family=family,
        listed=family in FAMILIES,
        layers=layers,
        hidden=hidden,
        vocabulary=text["vocab_size"],
        heads=heads,
        head_dim=head_dim,
        width=max(mlp, active * of_expert),
        writer=hidden * max(mlp, experts * of_expert),
        token=(layers - linear) * kept,
        row=row,
        dtype=dtype.removeprefix("torch."),
        notes=tuple(notes),
    )


def _kinds(text: dict[str, Any], layers: int) -> list[str]:
    """What each block attends with, as the library's configs name it."""
    kinds = text.get("layer_types")
    if kinds is None and text.get("linear_num_value_heads"):
        every = text.get("full_attention_interval") or 4  # the library's default for Qwen3-Next
        kinds = ["linear_attention" if (block + 1) % every else "full_attention" for block in range(layers)]
    if kinds is None:
        return ["full_attention"] * layers
    strange = sorted({str(kind) for kind in kinds} - _PLAIN - {"linear_attention"})
    if strange:
        raise UnknownShape(f"its config names {', '.join(strange)} blocks, whose memory is unknown")
    if len(kinds) != layers:
        raise UnknownShape(f"its config names {len(kinds)} kinds of block for {layers} blocks")
    return list(kinds)


def _state(text: dict[str, Any]) -> int:
    """Values of one block's gated delta net for a row: the recurrent state, and the convolution's last inputs."""
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
    recurrent = text["linear_num_value_heads"] * text["linear_key_head_dim"] * text["linear_value_head_dim"]
    return recurrent + (2 * keys + values) * text["linear_conv_kernel_dim"]
