"""The algebra of one weight's edit (engine.md section 3): W and directions in, small tensors out. Pure.

An edit of ``y = W x + b`` has a leading trial axis T, so that the rows of one batch can belong to different trials:

    x' = input_scale * x                                                                        [T, d_in]
    y' = output_scale * (W x' + b + (y read^T) write + (x' input_read^T) input_write)           y = W x' + b

`read` and `write` remove a direction from the output; `input_read` and `input_write` do the same from some columns of W
alone (attention heads). Fused experts have an expert axis E behind T where their tensors differ between experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bruno.engine.directions.algebra import orthonormal as exactly_orthonormal
from bruno.engine.edits.products import product, squared_norms

NormMode = Literal["column", "none", "row", "frobenius"]

# Below this share of a squared norm the vector was removed whole; what is left is rounding, and is not scaled up.
_VANISHED = 1e-6


@dataclass(frozen=True)
class WriterEdit:
    """The edit of one writer for T trials; fp32, on the writer's device.

    Attributes:
        input_scale: [T, d_in], or [T, E, d_in] for fused experts, or None (no scale).
        read, write: [T, k, d]; k may be 0. [T, E, k, d] where they differ between fused experts (row norms).
        output_scale: [T, d] or [T, E, d], or None.
        input_read, input_write: [T, k, d_in] and [T, k, d], or None; never for experts.
        edited: [T, E], 1 for the fused experts that the term of the output reaches and 0 for the others, or None (all).
    """

    input_scale: torch.Tensor | None
    read: torch.Tensor
    write: torch.Tensor
    output_scale: torch.Tensor | None
    input_read: torch.Tensor | None = None
    input_write: torch.Tensor | None = None
    edited: torch.Tensor | None = None

    def of_expert(self, expert: int) -> WriterEdit:
        """The edit of one of the fused experts, as of a writer with one weight."""

        def chosen(tensor: torch.Tensor | None, plain: int) -> torch.Tensor | None:
            return tensor[:, expert] if tensor is not None and tensor.dim() > plain else tensor

        read, write = chosen(self.read, 3), chosen(self.write, 3)
        if read is None or write is None:
            raise ValueError("an edit has both read and write")
        if self.edited is not None:
            write = write * self.edited[:, expert, None, None]
        return WriterEdit(chosen(self.input_scale, 2), read, write, chosen(self.output_scale, 2))


@dataclass(frozen=True)
class RouterEdit:
    """A router made blind to directions: W_g' = W_g (I - s V diag(w) V^T), as x' = x + (x read^T) write in front of it.

    Attributes:
        read: V, [T, k, d] fp32.
        write: -s w V, [T, k, d] fp32.
    """

    read: torch.Tensor
    write: torch.Tensor


def orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """Gram-Schmidt in order over k, computed in fp64: [..., k, d] -> the same shape and type."""
    return exactly_orthonormal(vectors).to(vectors.dtype)


def gained(basis: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """Directions as the weight's output must lose them: normalise(g * v) behind a post-norm of gain g, v otherwise.

    What is added to the stream is g * z / rms(z); its component along v is (g * v) . z / rms(z).
    """
    return basis if gain is None else orthonormal(basis * gain.to(basis.device))


def with_added(
    basis: torch.Tensor, strengths: torch.Tensor, added: torch.Tensor, strength: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions to remove and one to add (a negative removal), as one orthonormal basis with strengths.

    Only what of `added` is orthogonal to the removed directions is added: c = u |c_rest|, so c_rest c_rest^T is
    |c_rest|^2 u u^T, and an addition never puts a removed direction back.

    Args:
        basis, strengths: [..., T, k, d] orthonormal, and [..., T, k].
        added: c, [..., d], unit or zero.
        strength: how much of it, [..., T], 0 or more.
    """
    exact, added = basis.double(), added.double()[..., None, :]  # [..., T, k, d], [..., 1, d]
    along = (exact * added[..., None, :]).sum(-1, keepdim=True)  # [..., T, k, 1]
    rest = added - (along * exact).sum(-2)
    share = rest.square().sum(-1)  # [..., T]
    joined = orthonormal(torch.cat([basis, rest.to(basis)[..., None, :]], dim=-2))
    return joined, torch.cat([strengths, -(strength * share.to(strength))[..., None]], dim=-1)


def writer_edit(
    weight: torch.Tensor,
    basis: torch.Tensor,
    strengths: torch.Tensor,
    norm_mode: NormMode,
    columns: torch.Tensor | None = None,
    *,
    pieces: torch.Tensor | None = None,
    norms: torch.Tensor | None = None,
    experts: torch.Tensor | None = None,
) -> WriterEdit:
    """The edit of one weight, or of fused experts; the weight is read once (twice for `row`) and never copied whole.

    Args:
        weight: W, [d, d_in], or [E, d, d_in] for fused experts; fp32, or a narrower type as it is kept.
        basis: V, orthonormal directions [T, k, d].
        strengths: w, [T, k]; 1 removes a direction whole, a negative one adds it.
        norm_mode: which norms of W' are kept.
        columns: [d_in], True for the columns that lose the direction (None: all). `frobenius` and `row` keep the norms
            of the whole weight and of its whole rows.
        pieces: `products.split` of the basis as rows [T * k, d], where it is known already.
        norms: squared norms of the weight's columns (`row`: of its rows), where they are known already.
        experts: [E], True for the fused experts that are edited (None: all).

    With `none`, W' = (I - V diag(w) V^T) W. `column` and `frobenius` scale the input after that, which commutes with
    the projection. `row` projects the row-normalised weight and restores each row's norm, which puts part of the
    direction back: it is there to compare with other tools.
    """
    if norm_mode == "row":
        return _row_edit(weight, basis, strengths, columns, norms, experts)
    trials = basis.shape[:2]
    write, scale, along = -strengths[..., None] * basis, None, None
    if norm_mode != "none" or columns is not None:
        along = product(basis.flatten(0, 1), weight, pieces).unflatten(-2, trials)  # V^T W [(E,) T, k, d_in]
        along = along if columns is None else along * columns
    if norm_mode != "none" and along is not None:
        removed = strengths * (2.0 - strengths)  # share of the squared component along v that goes: 1 - (1 - w)^2
        lost = (removed[..., None] * along.square()).sum(-2)  # [(E,) T, d_in]
        before = (squared_norms(weight, -2) if norms is None else norms)[..., None, :]
        if norm_mode == "frobenius":
            lost, before = lost.sum(-1, keepdim=True), before.sum(-1, keepdim=True)
        scale = _restoring(before - lost, before).expand(*lost.shape[:-1], weight.shape[-1])
        scale = _by_trial(scale, experts).contiguous()
    if columns is not None and along is not None:
        return _on_input(scale, along, write, None)
    return WriterEdit(scale, basis, write, None, edited=_edited(experts, trials[0]))


def _row_edit(
    weight: torch.Tensor,
    basis: torch.Tensor,
    strengths: torch.Tensor,
    columns: torch.Tensor | None,
    squared: torch.Tensor | None,
    experts: torch.Tensor | None,
) -> WriterEdit:
    """Row norms kept, in closed form. What = W / n; What' = What - V diag(w) U with U = V^T What; W'_i = n_i What'_i/|.|.

    |What'_i|^2 = |What_i|^2 - 2 sum_k w_k v_ik (What U^T)_ik + (w v_i) (U U^T) (w v_i)^T, with |What_i| = 1. With some
    columns only, U is zero in the others, and the formula stays.
    """
    norms = (squared_norms(weight, -1) if squared is None else squared).sqrt()[..., None, None, :]  # [(E,) 1, 1, d]
    inverse = torch.where(norms > 0, 1.0 / norms.clamp_min(1e-30), torch.zeros_like(norms))
    read, weighted = basis * inverse, strengths[..., None] * basis  # [(E,) T, k, d], [T, k, d]
    shape = basis.shape[:2]
    along = product(read.flatten(-3, -2), weight).unflatten(-2, shape)  # U [(E,) T, k, d_in]
    if columns is not None:
        along = along * columns
    cross = product(along.flatten(-3, -2), weight.mT).unflatten(-2, shape) * inverse  # (What U^T)^T [(E,) T, k, d]
    gram = along @ along.mT  # [(E,) T, k, k]
    after = 1.0 - 2.0 * (weighted * cross).sum(-2) + (weighted * (gram @ weighted)).sum(-2)  # [(E,) T, d]
    scale = torch.where(norms[..., 0, :] > 0, _restoring(after, torch.ones_like(after)), torch.ones_like(after))
    write = -weighted * norms
    if columns is not None:
        return _on_input(None, along, write, scale)
    scale, edited = _by_trial(scale, experts), _edited(experts, shape[0])
    if weight.dim() == 3:
        read, write = read.transpose(0, 1).contiguous(), write.transpose(0, 1).contiguous()  # [T, E, k, d]
    return WriterEdit(None, read, write, scale, edited=edited)


def _on_input(
    scale: torch.Tensor | None, along: torch.Tensor, write: torch.Tensor, output_scale: torch.Tensor | None
) -> WriterEdit:
    """The term of the input, whose reader knows the columns, in place of the term of the output."""
    nothing = write.new_zeros(write.shape[0], 0, write.shape[2])
    return WriterEdit(scale, nothing, nothing, output_scale, input_read=along, input_write=write)


def _by_trial(scale: torch.Tensor, experts: torch.Tensor | None) -> torch.Tensor:
    """A scale [T, n] as it is, one of experts [E, T, n] as [T, E, n], 1 for those that are not edited."""
    if scale.dim() == 2:
        return scale
    scale = scale.transpose(0, 1).contiguous()
    return scale if experts is None else torch.where(experts[:, None], scale, torch.ones_like(scale))


def _edited(experts: torch.Tensor | None, trials: int) -> torch.Tensor | None:
    return None if experts is None else experts.float().expand(trials, -1).contiguous()


def _restoring(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """sqrt(before / after) of squared norms; 1 where nothing was there or nothing is left to scale."""
    alive = after > _VANISHED * before
    return torch.where(alive, (before / after.clamp_min(1e-30)).sqrt(), torch.ones_like(after))
