"""How each family of models writes to its residual stream: an explicit table, and discovery for unknown dense decoders.

Reads a live model's modules; runs it only to check a discovery. A model that is matched only in part is an error that
lists what was found: an edit that skips a writer looks as if it worked, and leaves the behaviour in.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import dequantize_bnb_weight
from transformers.pytorch_utils import Conv1D

from bruno.errors import InputError

ATTENTION = "attn.o_proj"
MLP = "mlp.down_proj"
COMPONENTS = (ATTENTION, MLP)


class UnsupportedModel(InputError):
    """The model's writers are not known whole, so nothing of it may be edited."""


@dataclass(frozen=True)
class Family:
    """Where one family keeps its writers; dotted paths, those after `blocks` relative to one block.

    Attributes:
        blocks: the decoder blocks, relative to the model with its head.
        attention: the attention's output projection.
        mlp: the MLP's down projection.
        attention_norm: norm that the attention's output passes before it is added ("" = none).
        mlp_norm: the same for the MLP's output.
        gain_offset: added to that norm's weight to give its gain (Gemma stores g - 1).
    """

    blocks: str = "model.layers"
    attention: str = "self_attn.o_proj"
    mlp: str = "mlp.down_proj"
    attention_norm: str = ""
    mlp_norm: str = ""
    gain_offset: float = 0.0


_LLAMA = Family()  # h + attn(norm(h)), h + mlp(norm(h)); no bias or a bias on the projection
_GEMMA = Family(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm", gain_offset=1.0)
_OLMO2 = Family(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm")
_NEOX = Family(blocks="gpt_neox.layers", attention="attention.dense", mlp="mlp.dense_4h_to_h")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # also SmolLM2, Yi, DeepSeek's and Hermes' Llama distillations
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,  # fused qkv and gate_up projections read the stream; the writers are the usual two
    "granite": _LLAMA,  # both outputs are scaled by residual_multiplier, a scalar: the direction stays
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _OLMO2,
    "gpt_neox": _NEOX,  # parallel residual: h + attn + mlp; both projections have biases
}
"""`model_type` of the decoder's config -> its family. Each is tested on a tiny random model, hook against bake."""

_ATTENTION_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_MLP_NAMES = ("down_proj", "dense_4h_to_h", "fc2", "c_proj", "fc_out", "w2")
_EXPERT_WORDS = ("experts", "expert", "router", "moe")
_TOWER_CONFIGS = ("vision_config", "audio_config", "speech_config")


@dataclass(frozen=True)
class Writer:
    """A module whose output is added to the residual stream: y = W x (+ b).

    Attributes:
        layer: index of its decoder block, 0 to L - 1.
        component: "attn.o_proj" or "mlp.down_proj", whatever the family calls it.
        module: the live module; its forward takes [..., d_in] and gives [..., d].
        name: its dotted name in the model, e.g. "model.layers.3.self_attn.o_proj".
        transposed: True where the stored weight is [d_in, d] (GPT-2's Conv1D).
        post_norm_gain: gain g of the norm that its output passes before it is added, [d] fp32, or None. What has to
            leave the weight's output is then g * v, not v.
    """

    layer: int
    component: str
    module: nn.Module
    name: str
    transposed: bool = False
    post_norm_gain: torch.Tensor | None = None

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(d, d_in), whatever the stored orientation; a quantised module packs its weight, so its features count."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        rows, columns = attrgetter("weight")(self.module).shape
        return (columns, rows) if self.transposed else (rows, columns)

    def weight(self) -> torch.Tensor:
        """W as [d, d_in] in fp32, on the module's device."""
        weight = attrgetter("weight")(self.module)
        if type(weight).__module__.startswith("bitsandbytes"):  # NF4 and 8-bit weights are packed
            weight = dequantize_bnb_weight(weight, getattr(self.module, "state", None))
        weight = weight.detach()
        return (weight.T if self.transposed else weight).float()


def decoder_config(model: PreTrainedModel):
    """The configuration of the language model inside (the text part, where there are several)."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        UnsupportedModel: no module list of the configured length, or more than one.
    """
    config = decoder_config(model)
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return attrgetter(family.blocks)(model)
    expected = config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == expected and len({type(m) for m in module}) == 1
    ]
    if len(lists) != 1:
        found = ", ".join(name for name, _ in lists) or "none"
        raise UnsupportedModel(
            f"{config.model_type}: expected one list of {expected} decoder blocks, found {found}",
            fix="This architecture needs an entry in bruno.engine.model.architectures.FAMILIES",
        )
    return lists[0][1]


def find_writers(model: PreTrainedModel) -> list[Writer]:
    """All writers, ordered by layer, then attention before MLP.

    Raises:
        UnsupportedModel: the family is refused for now, or only a part was found; the message lists what was found.
    """
    config = decoder_config(model)
    _refuse_what_is_not_dense(model, config)
    family = FAMILIES.get(config.model_type)
    writers = _writers_of_family(model, family, config) if family else _discover(model, config)
    for writer in writers:
        rows, _ = writer.weight_shape
        if rows != config.hidden_size:
            raise UnsupportedModel(f"{writer.name} writes {rows} values, the residual stream has {config.hidden_size}")
    return writers


def _refuse_what_is_not_dense(model: PreTrainedModel, config) -> None:
    """Mixtures of experts, linear attention and towers are not edited in part: they are refused, by name."""
    kind = config.model_type
    towers = [name for name in _TOWER_CONFIGS if getattr(model.config, name, None) is not None]
    if towers:
        raise UnsupportedModel(
            f"{model.config.model_type} has more than a language model ({', '.join(towers)})",
            fix="Load the text-only checkpoint of the same model, where there is one",
        )
    blocks = find_blocks(model)
    experts = sorted({n for n, _ in blocks.named_modules() if set(n.lower().split(".")) & set(_EXPERT_WORDS)})
    fused = [f"{n} {tuple(p.shape)}" for n, p in blocks.named_parameters() if p.dim() == 3 and "conv" not in n.lower()]
    if experts or fused:
        raise UnsupportedModel(
            f"{kind} is a mixture of experts, which is not edited yet (found {', '.join((experts + fused)[:6])} ...)"
        )
    recurrent = {
        t for t in getattr(config, "layer_types", None) or [] if t not in ("full_attention", "sliding_attention")
    }
    if recurrent:
        raise UnsupportedModel(f"{kind} mixes {', '.join(sorted(recurrent))} layers, which are not edited yet")


def _writers_of_family(model: PreTrainedModel, family: Family, config) -> list[Writer]:
    blocks = attrgetter(family.blocks)(model)
    writers, missing = [], []
    for layer, block in enumerate(blocks):
        for component, path, norm in (
            (ATTENTION, family.attention, family.attention_norm),
            (MLP, family.mlp, family.mlp_norm),
        ):
            try:
                module = block.get_submodule(path)
                gain = block.get_submodule(norm).weight.detach().float() + family.gain_offset if norm else None
            except AttributeError:
                missing.append(f"{family.blocks}.{layer}.{path}")
                continue
            name = f"{family.blocks}.{layer}.{path}"
            writers.append(Writer(layer, component, module, name, isinstance(module, Conv1D), gain))
    if missing or len(blocks) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"{config.model_type} should have {2 * config.num_hidden_layers} writers, found {len(writers)}; "
            f"missing {', '.join(missing[:6]) or 'whole blocks'}"
        )
    return writers


def _discover(model: PreTrainedModel, config) -> list[Writer]:
    """Writers of a dense decoder that the table does not know, by name and shape, then checked on a real pass."""
    blocks = find_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    writers = []
    for layer, block in enumerate(blocks):
        for component, parents, names in (
            (ATTENTION, ("attn", "attention"), _ATTENTION_NAMES),
            (MLP, ("mlp", "feed_forward", "ffn", "fc2"), _MLP_NAMES),
        ):
            matches = [
                (name, module)
                for name, module in block.named_modules()
                if name.rsplit(".", 1)[-1] in names
                and any(word in name.lower() for word in parents)
                and (component == ATTENTION or not any(w in name.lower() for w in ("attn", "attention")))
                and isinstance(module, nn.Linear | Conv1D)
            ]
            if len(matches) != 1:
                raise UnsupportedModel(
                    f"{config.model_type} is not in the table of architectures, and block {layer} has "
                    f"{len(matches)} candidates for {component}: {', '.join(n for n, _ in matches) or 'none'}",
                    fix="Give the family an entry in bruno.engine.model.architectures.FAMILIES",
                )
            name, module = matches[0]
            writers.append(
                Writer(layer, component, module, f"{prefix}.{name and f'{layer}.{name}'}", isinstance(module, Conv1D))
            )
    worst = residual_error(model, writers)
    # A missing writer shows as about 0.5 or more; half precision rounds the stream itself by some hundredths.
    if worst > (0.02 if model.dtype == torch.float32 else 0.25):
        raise UnsupportedModel(
            f"{config.model_type} is not in the table of architectures, and what its blocks add to the residual stream "
            f"is not what {writers[0].name} and {writers[1].name} put out (relative error {worst:.2g})",
            fix="Give the family an entry in bruno.engine.model.architectures.FAMILIES",
        )
    return writers


@torch.inference_mode()
def residual_error(model: PreTrainedModel, writers: list[Writer]) -> float:
    """How far the writers are from explaining the residual stream, on a short pass over arbitrary tokens.

    For each block, what it adds must be the sum of its writers' outputs, each through its post-norm, times one common
    scalar (a residual multiplier). Returns the worst relative error over blocks: about the data type's rounding
    when the table is right, around 1 when a writer is missing or a norm stands between.
    """
    blocks = find_blocks(model)
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}
    written: dict[int, torch.Tensor] = {}

    def keep_block(layer: int):
        def hook(_module, args, kwargs, output) -> None:
            inputs[layer] = (args[0] if args else kwargs["hidden_states"]).float()
            outputs[layer] = (output if isinstance(output, torch.Tensor) else output[0]).float()

        return hook

    def keep_writer(writer: Writer):
        def hook(_module, _args, output) -> None:
            value = output.float()
            if writer.post_norm_gain is not None:
                value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * writer.post_norm_gain
            written[writer.layer] = written[writer.layer] + value if writer.layer in written else value

        return hook

    handles = [block.register_forward_hook(keep_block(i), with_kwargs=True) for i, block in enumerate(blocks)]
    handles += [writer.module.register_forward_hook(keep_writer(writer)) for writer in writers]
    try:
        model(input_ids=torch.arange(3, 11, device=model.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    errors = []
    for layer in range(len(blocks)):
        added, sum_written = outputs[layer] - inputs[layer], written[layer].to(outputs[layer].device)
        scalar = (added * sum_written).sum() / sum_written.square().sum().clamp_min(1e-30)
        errors.append(float((added - scalar * sum_written).norm() / added.norm().clamp_min(1e-30)))
    return max(errors)
