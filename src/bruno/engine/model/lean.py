"""Decoder blocks run with half the launches, for the families whose blocks are built alike (Llama, Mistral, Qwen 2 and 3 ...).

Such a block is two products with norms, rotary embeddings, attention and a gated activation between them, some twenty
small operations as the library writes it, and six more for an edit's hooks. At a hundred rows each takes a GPU longer to
begin than to do. Here what lies between two products is one operation: an edit's removal, the residual sum and the next
norm; queries, keys and values turned and put where they are kept; the gate and the next input's scale.

Blocks are replaced for a pass at a time (`Lean.on`) and only by what gave the same numbers as the library's code when the
model was loaded (`make`): what is built otherwise, quantised or spread over devices stays as it is. The weights of queries,
keys and values are moved next to each other, which the library's own code does not notice. Runs the model; owns no edit:
it reads what a session has written (`EditSession.factors`), and leaves writers whose edit is of another kind to the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bruno.engine.edits.rows import NONE, Factors
from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import decoder_config, find_blocks
from bruno.engine.model.cache import PromptLayer
from bruno.engine.model.lean_torch import Heads, Norm
from bruno.engine.model.workspace import FixedLayer
from bruno.errors import first_line

_ROUNDING, _ROUGH_ROUNDING = 1e-4, 3e-2  # of what a block adds
_OTHER = "its blocks are built of other parts"


@dataclass(frozen=True)
class Parts:
    """What is read of one block.

    Attributes:
        attention: its attention, which the library's attention functions are handed.
        index: which layer of a cache is its own.
        scaling: what scores of attention are multiplied by.
        qkv, qkv_bias: weights of queries, keys and values as one, [(H + 2 G) size, d], and their biases.
        heads: how `qkv`'s products lie.
        out, gate, up, down: the other products.
        before, between: the norms in front of attention and of the MLP.
    """

    attention: nn.Module
    index: int
    scaling: float
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    heads: Heads
    out: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    before: Norm
    between: Norm


@torch.no_grad()  # not inference mode, whose tensors have no version: what is moved here stays a parameter like any other
def make(model: PreTrainedModel, operations: ModuleType) -> tuple[Lean | None, str]:
    """The lean blocks of a model, or None and why there are none.

    Args:
        operations: `lean_kernels`, or `lean_torch`.

    Each block is compared with the library's on random states before anything is replaced.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return None, "the model is spread over several devices"
    modules = find_blocks(model)
    decoders = [each for each in model.modules() if getattr(each, "layers", None) is modules]
    rotary: Any = next((each.rotary_emb for each in decoders if hasattr(each, "rotary_emb")), None)
    if rotary is None:
        return None, "its positions are not rotary embeddings of the whole decoder"
    parts = []
    for module in modules:
        found = _parts_of(module)
        if found is None:
            return None, _OTHER
        parts.append(found)
    lean = Lean(model, parts, operations)
    try:
        wrong = lean.difference(rotary)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return None, f"a block does not run by itself: {first_line(error)}"
    return (None, f"a block differs from the library's (by {wrong:.2g} of what it adds)") if wrong else (lean, "")


def _parts_of(block: nn.Module) -> Parts | None:
    """A block's parts, weights of queries, keys and values side by side from now on; None where it is built otherwise."""
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    norms = [_norm(getattr(block, name, None)) for name in ("input_layernorm", "post_attention_layernorm")]
    found = [getattr(attention, f"{name}_proj", None) for name in "qkvo"]
    found += [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    products = [each for each in found if type(each) is nn.Linear]
    if attention is None or len(products) < len(found) or norms[0] is None or norms[1] is None:
        return None
    if any(hasattr(block, name) for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm")):
        return None
    q, k, v, out, gate, up, down = products
    size, scaling, index = (getattr(attention, name, None) for name in ("head_dim", "scaling", "layer_idx"))
    if size is None or scaling is None or index is None or size % 2:
        return None
    if q.out_features % size or k.out_features % size or k.out_features != v.out_features:
        return None
    of_heads = [_norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm")]
    for name, norm in zip(("q_norm", "k_norm"), of_heads, strict=True):
        if hasattr(attention, name) and (norm is None or len(norm.gain) != size):
            return None
    if len({each.bias is None for each in (q, k, v)}) > 1:
        return None
    heads = Heads(q.out_features // size, k.out_features // size, size, *of_heads)
    weight, bias = _side_by_side("weight", [q, k, v]), None
    if q.bias is not None:
        bias = _side_by_side("bias", [q, k, v])
    return Parts(attention, index, scaling, weight, bias, heads, out, gate, up, down, norms[0], norms[1])


def _norm(module: nn.Module | None) -> Norm | None:
    eps, gain = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
    return Norm(gain, float(eps)) if eps is not None and gain is not None and gain.dim() == 1 else None


def _side_by_side(name: str, linears: Sequence[nn.Linear]) -> torch.Tensor:
    """One parameter of each as one tensor, of which each one's own is a view from now on."""
    own = [getattr(each, name).data for each in linears]
    whole = torch.cat(own)
    for each, part in zip(linears, whole.split([len(each) for each in own]), strict=True):
        setattr(each, name, nn.Parameter(part, requires_grad=False))
    return whole


class Lean:
    """The lean blocks of one model. Made by `make`."""

    def __init__(self, model: PreTrainedModel, parts: Sequence[Parts], operations: ModuleType) -> None:
        self._modules, self._parts, self._does = find_blocks(model), list(parts), operations
        self._config = decoder_config(model)
        self._session: EditSession | None = None
        self._normed: tuple[torch.Tensor, torch.Tensor] | None = None
        """The last block's output, and that normed for the next one."""
        self.refused = False
        """Set where a whole pass with them differed: `on` then leaves the model as it is."""
        self.single: Callable[..., torch.Tensor] | None = None
        """Attention of one new token over keys of a fixed length (`attention.grouped`), where that is used."""

    @contextmanager
    def on(self, session: EditSession | None) -> Iterator[None]:
        """For a while the model's blocks are these, with the session's edits."""
        if self.refused:
            yield
            return
        self._session = session if session is not None and session.trials else None
        for index, module in enumerate(self._modules):
            module.forward = partial(self._forward, index)
        try:
            yield
        finally:
            self._session = self._normed = None
            for module in self._modules:
                vars(module).pop("forward", None)

    @torch.inference_mode()
    def difference(self, rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> float:
        """By how much the first block that does differs from the library's, as a share of what it adds; 0 where what differs
        is rounding."""
        like = self._parts[0].qkv
        exact = like.dtype == torch.float32
        generator = torch.Generator(like.device).manual_seed(0)
        x = torch.randn(2, 6, like.shape[1], generator=generator, device=like.device)
        x = 0.03 * x  # so small that what a block adds is not lost in rounding the sum
        x = x.to(like.dtype)
        farthest = getattr(self._config, "max_position_embeddings", None) or 2048
        places = torch.linspace(0, farthest - 1, 6, device=like.device).long()[None]  # some families scale by distance
        positions = rotary(x, places)
        found = []
        for index, module in enumerate(self._modules):
            theirs = module(
                x, attention_mask=None, position_ids=places, position_embeddings=positions, past_key_values=None
            )
            ours = self._forward(index, x, position_embeddings=positions)
            self._normed = None
            adds = (theirs - x).float().norm()
            found.append(((ours - theirs).float().norm() / adds).item())
        allowed = _ROUNDING if exact else _ROUGH_ROUNDING
        return next((each for each in found if not each < allowed), 0.0)  # NaN is a difference

    def _forward(
        self,
        index: int,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **options: object,
    ) -> torch.Tensor:
        """One block, as the library calls it: [B, S, d] to [B, S, d]."""
        del position_ids, use_cache
        if position_embeddings is None:
            raise TypeError("a lean block needs the positions' cosines and sines")
        parts, does = self._parts[index], self._does
        kept = self._normed
        x = kept[1] if kept is not None and kept[0] is hidden_states else does.normed(hidden_states, parts.before)
        writes = self._factors(parts.out)
        qkv = linear(x, parts.qkv, parts.qkv_bias)
        mixed = self._attend(parts, qkv, position_embeddings, attention_mask, past_key_values, writes, options)
        stream, x = does.added(_product(parts.out, mixed, writes), hidden_states, writes or NONE, parts.between)
        writes = self._factors(parts.down)
        inner = does.gated(_product(parts.gate, x), _product(parts.up, x), writes or NONE)
        following = self._parts[index + 1].before if index + 1 < len(self._parts) else None
        out, x = does.added(_product(parts.down, inner, writes), stream, writes or NONE, following)
        self._normed = None if x is None else (out, x)
        return out

    def _factors(self, writer: nn.Module) -> Factors | None:
        """What the session does to a writer; None where that is left to the hooks on it."""
        return NONE if self._session is None else self._session.factors(writer)

    def _attend(
        self,
        parts: Parts,
        qkv: torch.Tensor,
        positions: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: Cache | None,
        writes: Factors | None,
        options: dict[str, object],
    ) -> torch.Tensor:
        """What goes into the output projection, with the edit's input scale on it: [B, S, H size]."""
        does, rows, positions_of_row = self._does, qkv.shape[0], qkv.shape[1]
        layer = cache.layers[parts.index] if cache is not None else None
        of_group = (parts.heads.groups, parts.heads.size)
        if isinstance(layer, FixedLayer) and positions_of_row == 1:
            q, _, _ = does.turned(qkv, *positions, parts.heads, layer.into)
            k, v = layer.read()
            if self.single is not None and mask is not None:
                return self.single(q, k, v, mask, parts.scaling, writes or NONE).view(rows, 1, -1)
        elif isinstance(layer, PromptLayer) and (own := layer.room(of_group, of_group, (rows, positions_of_row), qkv)):
            q, _, _ = does.turned(qkv, *positions, parts.heads, (*own, None))
            k, v = layer.keys, layer.values
        else:
            q, k, v = does.turned(qkv, *positions, parts.heads)
            if cache is not None:
                k, v = cache.update(k, v, parts.index)
        attend = ALL_ATTENTION_FUNCTIONS[self._config._attn_implementation]
        window = getattr(parts.attention, "sliding_window", None)
        mixed, _ = attend(
            parts.attention, q, k, v, mask, dropout=0.0, scaling=parts.scaling, sliding_window=window, **options
        )
        mixed = mixed.reshape(rows, positions_of_row, -1)
        return mixed if writes is None else does.scaled(mixed, writes)


def _product(linear_of: nn.Linear, x: torch.Tensor, factors: Factors | None = NONE) -> torch.Tensor:
    """W x + b; by way of the module's hooks where nothing else applies its edit (None)."""
    return linear_of(x) if factors is None else linear(x, linear_of.weight, linear_of.bias)
