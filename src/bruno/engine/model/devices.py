"""Where the model runs: which devices, and which block on which of them.

Over several GPUs the blocks are dealt out in order so that the fullest device holds as little as possible, with the
embeddings (and what else comes before the blocks) on the first and the head on the last. Filling one device after the
other would leave no room on the first for the states of a batch. Pure but for asking torch what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import nn

from bruno.engine.model.architectures import find_blocks
from bruno.errors import InputError


def devices_for(wanted: str) -> list[torch.device]:
    """The devices that "auto" (all GPUs, else the CPU) or a torch name stands for; at least one.

    Raises:
        InputError: there is no such device here.
    """
    if wanted == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"There is no device {wanted} here: {reason}", fix="Say cpu, cuda or auto") from error
    return [device]


def shares(sizes: Sequence[int], first: int, last: int, devices: int) -> list[int]:
    """Which device each block goes to: never decreasing, and the largest load as small as it can be.

    Args:
        sizes: bytes of each block.
        first: bytes that go to the first device beside its blocks.
        last: bytes that go to the last one.

    Returns:
        A device number for each block; every device has a block where there are enough of them.
    """
    devices = min(devices, len(sizes))
    if devices <= 1:
        return [0] * len(sizes)
    total = [0]
    for size in sizes:
        total.append(total[-1] + size)
    # best[k][n]: (largest load, where the last device's blocks begin) with the first n blocks on k + 1 devices
    best = [{n: (first + total[n], 0) for n in range(1, len(sizes) + 1)}]
    for device in range(1, devices):
        extra = last if device == devices - 1 else 0
        row = {}
        for n in range(device + 1, len(sizes) + 1):
            loads = ((max(best[-1][cut][0], total[n] - total[cut] + extra), cut) for cut in range(device, n))
            row[n] = min(loads)
        best.append(row)
    placed, end = [0] * len(sizes), len(sizes)
    for device in range(devices - 1, 0, -1):
        cut = best[device][end][1]
        placed[cut:end] = [device] * (end - cut)
        end = cut
    return placed


def device_map(
    model: nn.Module, devices: Sequence[torch.device], bytes_of: Callable[[str, nn.Parameter], float]
) -> dict[str, torch.device]:
    """An explicit map for `from_pretrained`: module (or parameter) name -> device; every parameter is covered once.

    Args:
        model: may be on the meta device.
        bytes_of: memory of a parameter, by name.
    """
    if len(devices) == 1:
        return {"": devices[0]}
    blocks = find_blocks(model)  # type: ignore[arg-type]
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    tied = _head_is_embedding(model)
    early, late, passed = [], [], False
    for name, part in _parts(model, blocks):
        if part is blocks:
            passed = True
        elif passed and not tied and any(True for _ in part.parameters()):
            late.append(name)
        else:
            early.append(name)
    sizes: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        owner = f"{prefix}.{name[len(prefix) + 1 :].split('.')[0]}" if name.startswith(f"{prefix}.") else name
        sizes[owner] = sizes.get(owner, 0) + bytes_of(name, parameter)
    load = [
        int(sum(size for name, size in sizes.items() if any(name == n or name.startswith(f"{n}.") for n in names)))
        for names in (early, late)
    ]
    placed = shares([int(sizes[f"{prefix}.{i}"]) for i in range(len(blocks))], load[0], load[1], len(devices))
    return {
        **dict.fromkeys(early, devices[0]),
        **{f"{prefix}.{i}": devices[place] for i, place in enumerate(placed)},
        **dict.fromkeys(late, devices[max(placed)]),
    }


def _parts(model: nn.Module, blocks: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules beside the list of blocks, as few as possible, in order; the list itself stands among them."""
    for name, tensor in chain(model.named_parameters(recurse=False), model.named_buffers(recurse=False)):
        yield f"{prefix}{name}", nn.ParameterList([nn.Parameter(tensor, requires_grad=False)])
    for name, child in model.named_children():
        full = f"{prefix}{name}"
        if child is not blocks and any(module is blocks for module in child.modules()):
            yield from _parts(child, blocks, f"{full}.")
        else:
            yield full, child


def _head_is_embedding(model: nn.Module) -> bool:
    """Whether head and input embedding are one tensor: they cannot be on two devices then."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    return all(ends) and ends[0].weight is ends[1].weight
