"""The algebra of one weight's edit (engine.md section 3): W and directions in, small tensors out. Pure.

An edit of ``y = W x + b`` has a leading trial axis T, so that the rows of one batch can belong to different trials:

    x' = input_scale * x                                                                        [T, d_in]
    y' = output_scale * (W x' + b + (y read^T) write + (x' input_read^T) input_write)           y = W x' + b

`read` and `write` remove a direction from the output; `input_read` and `input_write` do the same from some columns of W
alone (attention heads). Fused experts have an expert axis E behind T where their tensors differ between experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bruno.engine.directions.algebra import orthonormal as exactly_orthonormal

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
        basis, strengths: [T, k, d] orthonormal, and [T, k].
        added: c, [d], unit or zero.
        strength: how much of it, [T], 0 or more.
    """
    rest = added.double()[None] - torch.einsum("tk,tkd->td", basis.double() @ added.double(), basis.double())
    share = rest.square().sum(-1)  # [T]
    joined = orthonormal(torch.cat([basis, rest.to(basis)[:, None]], dim=1))
    return joined, torch.cat([strengths, -(strength * share.to(strength))[:, None]], dim=1)


def writer_edit(
    weight: torch.Tensor,
    basis: torch.Tensor,
    strengths: torch.Tensor,
    norm_mode: NormMode,
    columns: torch.Tensor | None = None,
) -> WriterEdit:
    """The edit of one weight.

    Args:
        weight: W, [d, d_in] fp32.
        basis: V, orthonormal directions [T, k, d].
        strengths: w, [T, k]; 1 removes a direction whole, a negative one adds it.
        norm_mode: which norms of W' are kept.
        columns: [d_in], True for the columns that lose the direction (None: all). `frobenius` and `row` keep the norms
            of the whole weight and of its whole rows.

    With `none`, W' = (I - V diag(w) V^T) W. `column` and `frobenius` scale the input after that, which commutes with
    the projection. `row` projects the row-normalised weight and restores each row's norm, which puts part of the
    direction back: it is there to compare with other tools.
    """
    if norm_mode == "row":
        return _row_edit(weight, basis, strengths, columns)
    along = basis @ weight  # V^T W [T, k, d_in]
    if columns is not None:
        along = along * columns
    write = -strengths[..., None] * basis
    scale = None
    if norm_mode != "none":
        removed = strengths * (2.0 - strengths)  # share of the squared component along v that goes: 1 - (1 - w)^2
        lost = (removed[..., None] * along.square()).sum(1)  # [T, d_in]
        before = weight.square().sum(0)  # [d_in]
        if norm_mode == "frobenius":
            lost, before = lost.sum(-1, keepdim=True), before.sum(-1, keepdim=True)
        scale = _restoring(before - lost, before).expand(-1, weight.shape[1]).contiguous()
    return _edit(scale, basis, along, write, None, columns)


def _row_edit(
    weight: torch.Tensor, basis: torch.Tensor, strengths: torch.Tensor, columns: torch.Tensor | None
) -> WriterEdit:
    """Row norms kept, in closed form. What = W / n; What' = What - V diag(w) U with U = V^T What; W'_i = n_i What'_i/|.|.

    |What'_i|^2 = |What_i|^2 - 2 sum_k w_k v_ik (What U^T)_ik + (w v_i) (U U^T) (w v_i)^T, with |What_i| = 1. With some
    columns only, U is zero in the others, and the formula stays.
    """
    norms = torch.linalg.vector_norm(weight, dim=1)  # [d]
    inverse = torch.where(norms > 0, 1.0 / norms.clamp_min(1e-30), torch.zeros_like(norms))
    unit_rows = weight * inverse[:, None]
    along = basis @ unit_rows  # U [T, k, d_in]
    if columns is not None:
        along = along * columns
    weighted = strengths[..., None] * basis  # [T, k, d]
    cross = along @ unit_rows.T  # (What U^T)^T [T, k, d]
    gram = along @ along.transpose(1, 2)  # [T, k, k]
    after = 1.0 - 2.0 * (weighted * cross).sum(1) + (weighted * (gram @ weighted)).sum(1)  # [T, d]
    scale = torch.where(norms > 0, _restoring(after, torch.ones_like(after)), torch.ones_like(after))
    return _edit(None, basis * inverse, along, -weighted * norms, scale, columns)


def _edit(
    scale: torch.Tensor | None,
    read: torch.Tensor,
    along: torch.Tensor,
    write: torch.Tensor,
    output_scale: torch.Tensor | None,
    columns: torch.Tensor | None,
) -> WriterEdit:
    """The term of the output where all columns are edited; the term of the input, whose reader knows the columns, else."""
    if columns is None:
        return WriterEdit(scale, read, write, output_scale)
    nothing = read.new_zeros(read.shape[0], 0, read.shape[2])
    return WriterEdit(scale, nothing, nothing, output_scale, input_read=along, input_write=write)


def stack_experts(edits: Sequence[WriterEdit | None], inputs: int) -> WriterEdit:
    """One edit of E fused experts from those of each, of which at least one is there; None leaves an expert alone.

    The term of the output is kept once where all experts share it, which all but row norms do. `inputs` is d_in.
    """
    example = next(edit for edit in edits if edit is not None)
    trials, _, hidden = example.read.shape

    def stacked(name: str, width: int) -> torch.Tensor | None:
        if getattr(example, name) is None:
            return None
        one = example.read.new_ones(trials, width)
        return torch.stack([one if edit is None else getattr(edit, name) for edit in edits], dim=1)

    edited = torch.tensor([float(edit is not None) for edit in edits], device=example.read.device).expand(trials, -1)
    shared = example.output_scale is None
    nothing = torch.zeros_like(example.read)
    return WriterEdit(
        input_scale=stacked("input_scale", inputs),
        read=example.read if shared else torch.stack([nothing if e is None else e.read for e in edits], dim=1),
        write=example.write if shared else torch.stack([nothing if e is None else e.write for e in edits], dim=1),
        output_scale=stacked("output_scale", hidden),
        edited=None if all(edits) else edited.contiguous(),
    )


def _restoring(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """sqrt(before / after) of squared norms; 1 where nothing was there or nothing is left to scale."""
    alive = after > _VANISHED * before
    return torch.where(alive, (before / after.clamp_min(1e-30)).sqrt(), torch.ones_like(after))
