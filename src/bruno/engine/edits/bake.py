"""The edit applied to stored weights: the same algebra as the hooks, in fp32, cast back once.

Pure: tensors in, tensors out. A hooked module computes S_out (A (W S_in x + b) + B S_in x) with A = I + write^T read and
B = input_write^T input_read; baking gives W' = S_out (A W + B) S_in and b' = S_out A b.
"""

from __future__ import annotations

import torch

from bruno.engine.edits.algebra import RouterEdit, WriterEdit


@torch.inference_mode()
def bake_weight(weight: torch.Tensor, edit: WriterEdit, trial: int = 0, *, transposed: bool = False) -> torch.Tensor:
    """W' in the dtype and orientation of `weight` ([d, d_in], or [d_in, d] when transposed). Of fused experts one at a
    time, with `edit.of_expert`."""
    baked = (weight.T if transposed else weight).float()
    if edit.input_read is not None and edit.input_write is not None:
        baked = baked + edit.input_write[trial].to(baked.device).T @ edit.input_read[trial].to(baked.device)
    if edit.input_scale is not None:
        baked = baked * edit.input_scale[trial].to(baked.device)
    baked = _on_output(baked, edit, trial)
    return (baked.T if transposed else baked).to(weight.dtype).contiguous()


@torch.inference_mode()
def bake_bias(bias: torch.Tensor, edit: WriterEdit, trial: int = 0) -> torch.Tensor:
    """b' [d] in the dtype of `bias`."""
    return _on_output(bias.float()[:, None], edit, trial)[:, 0].to(bias.dtype)


@torch.inference_mode()
def bake_router(weight: torch.Tensor, edit: RouterEdit, trial: int = 0) -> torch.Tensor:
    """W_g' [E, d] in the dtype of `weight`."""
    read, write = edit.read[trial].to(weight.device), edit.write[trial].to(weight.device)  # [k, d]
    return (weight.float() + (weight.float() @ read.T) @ write).to(weight.dtype)


def _on_output(columns: torch.Tensor, edit: WriterEdit, trial: int) -> torch.Tensor:
    """S_out (I + write^T read) applied to each column, [d, n] -> [d, n] fp32."""
    read, write = edit.read[trial].to(columns.device), edit.write[trial].to(columns.device)  # [k, d]
    columns = columns + write.T @ (read @ columns)
    return columns if edit.output_scale is None else columns * edit.output_scale[trial].to(columns.device)[:, None]
