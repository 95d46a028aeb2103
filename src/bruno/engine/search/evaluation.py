"""Have a batch of trials scored, with less at a time where memory runs out. The model is behind a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bruno.engine.edits.trial import TrialEdit
from bruno.engine.events import Emit, OutOfMemory
from bruno.engine.model.memory import is_out_of_memory
from bruno.engine.scoring.result import Known, Scores, Stopped

Evaluate = Callable[[Sequence[TrialEdit], int, Sequence[Known]], Sequence[Scores | Stopped | str]]
"""Scores a batch of edits with at most so many rows in one forward pass (0: as many as it likes), told the trials that were
scored before, any of which may show that one of the batch need not be read to its end; the reason in words for a trial
that is rejected."""

ATTEMPTS = 3
"""How often a batch that runs out of memory is tried, each time with half the rows."""


def evaluate_batch(
    evaluate: Evaluate, edits: list[TrialEdit], known: Sequence[Known], most: int, rows: int, emit: Emit
) -> tuple[Sequence[Scores | Stopped | str], int]:
    """Scores of a batch, with half the rows after each time memory ran out; and the rows that worked, for the next one.

    Args:
        most: how many rows a batch needs at most (trials x prompts): where halving starts.
        rows: what worked for the last batch; 0 for as many as `evaluate` likes.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return evaluate(edits, rows, known), rows
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the exception's traceback holds the tensors that filled the memory.
        emit(OutOfMemory(attempt=attempt, attempts=ATTEMPTS))
        release_memory()
        rows = max(1, (rows or most) // 2)
    return [f"out of memory {ATTEMPTS} times, the last with {rows * 2} rows"] * len(edits), rows


def release_memory() -> None:
    """Give cached blocks back to the device."""
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")  # where it is not imported there is no device
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
