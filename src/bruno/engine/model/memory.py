"""Running out of memory: the work is tried again in smaller pieces, and every attempt is an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import psutil

from bruno.engine.events import Emit, OutOfMemory
from bruno.errors import BrunoError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a GPU's or the machine's memory ran out (torch words the CPU's as RuntimeError)."""
    # by name, because a study imports no torch
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error))
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on a GPU those that torch keeps for itself without using them count."""
    import torch

    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def halving(work: Callable[[int], T], rows: int, emit: Emit) -> T:
    """`work(rows)`, again with half the rows each time memory runs out, down to one.

    Raises:
        BrunoError: one row alone does not fit.
    """
    import torch

    attempts = rows.bit_length()
    for attempt in range(1, attempts + 1):
        try:
            return work(rows)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            emit(OutOfMemory(attempt=attempt, attempts=attempts))
        # outside the handler, so that the failed pass's tensors are no longer held by its traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = max(1, rows // 2)
    raise BrunoError("Memory does not hold a single prompt", fix="Choose a larger machine, or loading.quantization nf4")
