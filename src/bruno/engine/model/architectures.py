"""The writers of a live model: the modules whose output is added to its residual stream, by the table or by discovery.

Reads a live model's modules; runs it only to check a discovery. A model that is matched only in part is an error that
lists what was found: an edit that skips a writer looks as if it worked, and leaves the behaviour in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bruno.engine.model.families import FAMILIES, TOWER_BLOCKS, WITH_TOWERS, Family, MixtureLayout
from bruno.engine.model.residual_check import residual_error
from bruno.errors import InputError

ATTENTION = "attn.o_proj"
MLP = "mlp.down_proj"
COMPONENTS = (ATTENTION, MLP)

_ATTENTION_NAMES = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_MLP_NAMES = ("down_proj", "dense_4h_to_h", "fc2", "c_proj", "fc_out", "w2")
_EXPERT_WORDS = ("experts", "expert", "router", "moe")
_TOWER_CONFIGS = ("vision_config", "audio_config", "speech_config")
_SOFTMAX_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_TABLE = "This architecture needs an entry in bruno.engine.model.families.FAMILIES"


class UnsupportedModel(InputError):
    """The model's writers are not known whole, so nothing of it may be edited."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of experts in one block.

    Attributes:
        layer: index of its decoder block, 0 to L - 1.
        module: takes the normed stream [B, S, d], gives what the block adds (some return a tuple with it first).
        router: its `weight` [E, d] scores the experts; called with [B, S, d] or [B * S, d].
        router_name: dotted name of `router` in the model.
        experts: number E of routed experts.
        fused: True where one module holds all experts' weights in 3-D parameters.
    """

    layer: int
    module: nn.Module
    router: nn.Module
    router_name: str
    experts: int
    fused: bool


@dataclass(frozen=True)
class Writer:
    """A module whose output is added to the residual stream: y = W x (+ b).

    Attributes:
        layer: index of its decoder block, 0 to L - 1.
        component: "attn.o_proj" or "mlp.down_proj", whatever the family calls it (experts are the latter).
        module: the live module. Its forward takes [..., d_in] and gives [..., d], or it is the fused experts' module.
        name: its dotted name in the model, e.g. "model.layers.3.self_attn.o_proj".
        transposed: True where a weight is kept as [d_in, d] (GPT-2's Conv1D, gpt-oss' experts).
        post_norm_gain: gain g of the norm that its output passes before it is added, [d] fp32, or None. What has to
            leave the weight's output is then g * v, not v.
        heads: attention writers: number of heads whose outputs, side by side, are x; 0 otherwise, and where unknown.
        mixture: the mixture of experts whose routed expert this is; None for all other writers.
        expert: which routed expert, where each is a module of its own; None for the fused ones and all other writers.
    """

    layer: int
    component: str
    module: nn.Module
    name: str
    transposed: bool = False
    post_norm_gain: torch.Tensor | None = None
    heads: int = 0
    mixture: Mixture | None = None
    expert: int | None = None

    @property
    def experts(self) -> int:
        """Number of weights in this writer: E for fused experts, 0 for a writer with one weight."""
        return self.mixture.experts if self.mixture is not None and self.mixture.fused else 0

    @property
    def weight_name(self) -> str:
        """Dotted name of the parameter that holds W."""
        return f"{self.name}.down_proj" if self.experts else f"{self.name}.weight"

    @property
    def bias_name(self) -> str | None:
        """Dotted name of the parameter that holds b, None where there is none."""
        name = "down_proj_bias" if self.experts else "bias"
        return None if getattr(self.module, name, None) is None else f"{self.name}.{name}"

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(d, d_in) of one weight, whatever the stored orientation; a quantised module packs its weight, so its
        features count."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        rows, columns = attrgetter("down_proj" if self.experts else "weight")(self.module).shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def parameter(self) -> nn.Parameter:
        """What holds W, in its own type and orientation."""
        return attrgetter("down_proj" if self.experts else "weight")(self.module)

    def weight(self, expert: int = 0) -> torch.Tensor:
        """W as [d, d_in] in fp32, on the module's device; of one expert, where the writer holds many."""
        weight = self.parameter[expert] if self.experts else self.stored()
        return (weight.detach().T if self.transposed and self.experts else weight).float()

    def stored(self) -> torch.Tensor:
        """W as [d, d_in], or [E, d, d_in] of fused experts, in the type it is kept in; a view, but for packed weights."""
        weight = self.parameter
        if type(weight).__module__.startswith("bitsandbytes"):  # NF4 and 8-bit weights are packed
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            weight = dequantize_bnb_weight(weight, getattr(self.module, "state", None))
        weight = weight.detach()
        return weight.mT if self.transposed else weight


def decoder_config(model: PreTrainedModel):
    """The configuration of the language model inside (the text part, where there are several)."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order.

    Raises:
        UnsupportedModel: no module list of the configured length, or more than one.
    """
    return _named_blocks(model)[1]


def find_writers(model: PreTrainedModel) -> list[Writer]:
    """All writers, ordered by layer: attention, then the MLP or the routed and the shared experts.

    Raises:
        UnsupportedModel: the family is refused, or only a part was found; the message lists what was found.
    """
    config = decoder_config(model)
    family = FAMILIES.get(config.model_type)
    _refuse_unknown_parts(model, config, family)
    writers = _writers_of_family(model, family, config) if family else _discover(model, config)
    for writer in writers:
        rows, columns = writer.weight_shape
        if rows != config.hidden_size:
            raise UnsupportedModel(f"{writer.name} writes {rows} values, the residual stream has {config.hidden_size}")
        if writer.heads and columns % writer.heads:
            raise UnsupportedModel(f"{writer.name} reads {columns} values, which are not {writer.heads} heads")
    return writers


def find_mixtures(writers: Sequence[Writer]) -> list[Mixture]:
    """The mixtures of experts among the writers, by layer; their routers are edited by `EditRules.router`."""
    return list(dict.fromkeys(writer.mixture for writer in writers if writer.mixture is not None))


def _named_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    config = decoder_config(model)
    family = FAMILIES.get(config.model_type)
    if family is not None:
        for path in (TOWER_BLOCKS, family.blocks):
            try:
                return path, attrgetter(path)(model)
            except AttributeError:
                continue
    expected = config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == expected and len({type(m) for m in module}) == 1
    ]
    if len(lists) != 1:
        found = ", ".join(name for name, _ in lists) or "none"
        raise UnsupportedModel(
            f"{config.model_type}: expected one list of {expected} decoder blocks, found {found}", fix=_TABLE
        )
    return lists[0]


def _refuse_unknown_parts(model: PreTrainedModel, config, family: Family | None) -> None:
    """Mixtures of experts, linear attention and towers that the table does not know are refused, by name."""
    kind = config.model_type
    towers = [name for name in _TOWER_CONFIGS if getattr(model.config, name, None) is not None]
    if towers and (family is None or model.config.model_type not in WITH_TOWERS):
        raise UnsupportedModel(
            f"{model.config.model_type} has more than a language model ({', '.join(towers)}), and is not in the table "
            f"of those whose text part is known ({', '.join(sorted(WITH_TOWERS))})",
            fix="Load the text-only checkpoint of the same model, where there is one",
        )
    blocks = find_blocks(model)
    experts = sorted({n for n, _ in blocks.named_modules() if set(n.lower().split(".")) & set(_EXPERT_WORDS)})
    fused = [f"{n} {tuple(p.shape)}" for n, p in blocks.named_parameters() if p.dim() == 3 and "conv" not in n.lower()]
    if (experts or fused) and (family is None or family.mixture is None):
        raise UnsupportedModel(
            f"{kind} is a mixture of experts that is not in the table of architectures "
            f"(found {', '.join((experts + fused)[:6])} ...)",
            fix=_TABLE,
        )
    recurrent = {t for t in getattr(config, "layer_types", None) or [] if t not in _SOFTMAX_ATTENTION}
    if recurrent and (family is None or not family.linear_attention):
        raise UnsupportedModel(
            f"{kind} mixes in {', '.join(sorted(recurrent))} layers, and is not in the table of architectures",
            fix=_TABLE,
        )


def _writers_of_family(model: PreTrainedModel, family: Family, config) -> list[Writer]:
    prefix, blocks = _named_blocks(model)
    writers, missing = [], []
    for layer, block in enumerate(blocks):
        name = f"{prefix}.{layer}"
        linear = bool(family.linear_attention) and _part(block, family.linear_attention) is not None
        heads = config.linear_num_value_heads if linear else config.num_attention_heads
        path = family.linear_attention if linear else family.attention
        writers += _plain(layer, block, name, ATTENTION, path, family.attention_norm, family, missing, heads)
        layout = family.mixture
        if layout is not None and _part(block, f"{layout.module}.{layout.experts}") is not None:
            writers += _of_mixture(layer, block, name, layout, config, missing)
        else:
            writers += _plain(layer, block, name, MLP, family.mlp, family.mlp_norm, family, missing)
    if missing or len(blocks) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"{config.model_type} should have writers in {config.num_hidden_layers} blocks, found {len(writers)} in "
            f"{len(blocks)}; missing {', '.join(missing[:6]) or 'whole blocks'}"
        )
    return writers


def _part(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _plain(
    layer: int,
    block: nn.Module,
    prefix: str,
    component: str,
    path: str,
    norm: str,
    family: Family,
    missing: list[str],
    heads: int = 0,
) -> list[Writer]:
    """One writer with a weight of its own; what is absent is noted in `missing`."""
    module, norm_module = _part(block, path), _part(block, norm) if norm else None
    absent = [
        name for name, part, wanted in ((path, module, True), (norm, norm_module, norm)) if wanted and part is None
    ]
    missing.extend(f"{prefix}.{name}" for name in absent)
    if module is None or absent:
        return []
    gain = attrgetter("weight")(norm_module).detach().float() + family.gain_offset if norm_module is not None else None
    return [Writer(layer, component, module, f"{prefix}.{path}", isinstance(module, Conv1D), gain, heads)]


def _of_mixture(
    layer: int, block: nn.Module, prefix: str, layout: MixtureLayout, config, missing: list[str]
) -> list[Writer]:
    """The routed experts (one writer when fused, E otherwise) and the shared one."""
    module = block.get_submodule(layout.module)
    prefix = f"{prefix}.{layout.module}"
    experts = module.get_submodule(layout.experts)
    router = _part(module, layout.router)
    if router is None or getattr(router, "weight", None) is None:
        missing.append(f"{prefix}.{layout.router}.weight")
        return []
    count = attrgetter("weight")(router).shape[0]
    mixture = Mixture(layer, module, router, f"{prefix}.{layout.router}", count, not isinstance(experts, nn.ModuleList))
    writers = []
    if isinstance(experts, nn.ModuleList):
        for number, expert in enumerate(experts):
            name = f"{prefix}.{layout.experts}.{number}.{layout.down}"
            down = _part(expert, layout.down)
            if down is None:
                missing.append(name)
            else:
                writers.append(Writer(layer, MLP, down, name, mixture=mixture, expert=number))
        found = len(experts)
    else:
        weight = getattr(experts, "down_proj", None)
        found = len(weight) if isinstance(weight, nn.Parameter) and weight.dim() == 3 else 0
        transposed = bool(getattr(experts, "is_transposed", False))
        writers.append(Writer(layer, MLP, experts, f"{prefix}.{layout.experts}", transposed, mixture=mixture))
    if found != count:
        missing.append(f"{prefix}.{layout.experts} ({found} of the {count} experts that the router scores)")
        return []
    if layout.shared:
        shared = _part(module, layout.shared)
        if shared is not None:
            writers.append(Writer(layer, MLP, shared, f"{prefix}.{layout.shared}"))
        elif getattr(config, "n_shared_experts", 1):
            missing.append(f"{prefix}.{layout.shared}")
    return writers


def _discover(model: PreTrainedModel, config) -> list[Writer]:
    """Writers of a dense decoder that the table does not know, by name and shape, then checked on a real pass."""
    prefix, blocks = _named_blocks(model)
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
                    fix=_TABLE,
                )
            name, module = matches[0]
            writer = Writer(layer, component, module, f"{prefix}.{layer}.{name}", isinstance(module, Conv1D))
            heads = getattr(config, "num_attention_heads", 0) if component == ATTENTION else 0
            writers.append(replace(writer, heads=heads) if heads and writer.weight_shape[1] % heads == 0 else writer)
    worst = residual_error(model, find_blocks(model), writers)
    # A missing writer shows as about 0.5 or more; half precision rounds the stream itself by some hundredths.
    if worst > (0.02 if model.dtype == torch.float32 else 0.25):
        raise UnsupportedModel(
            f"{config.model_type} is not in the table of architectures, and what its blocks add to the residual stream "
            f"is not what {writers[0].name} and {writers[1].name} put out (relative error {worst:.2g})",
            fix=_TABLE,
        )
    return writers
