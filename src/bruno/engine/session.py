"""Edits on the running model: forward hooks around the writers, and which trial each row of the batch belongs to.

The only module that attaches hooks for edits. No weight is touched; leaving the session removes every hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import torch
    from torch import nn

    from bruno.engine.architectures import Writer
    from bruno.engine.edits import EditBatch


class EditSession:
    """Holds the hooks while a search runs::

        with EditSession(loaded.model, loaded.writers, max_trials=8) as session:
            session.write(build_edits(trials, directions, loaded.writers, "column"))
            answers = generate(loaded, prepared, session=session, max_new_tokens=100)
            session.off()   # the base model again

    Args:
        model: the model the writers were found in.
        writers: from `architectures.find_writers`, in that order.
        max_trials: the largest T that will be written.
    """

    def __init__(self, model: nn.Module, writers: Sequence[Writer], max_trials: int = 8) -> None:
        raise NotImplementedError

    @property
    def trials(self) -> int:
        """T of the edits now active; 0 when off."""
        raise NotImplementedError

    @property
    def first_layer(self) -> tuple[int, ...]:
        """Lowest edited block per trial, as in `EditBatch.first_layer`; empty when off."""
        raise NotImplementedError

    def write(self, batch: EditBatch) -> None:
        """Make a batch of trials active, in place. Until `rows` is called every row belongs to trial 0."""
        raise NotImplementedError

    def rows(self, trial_of_row: torch.Tensor) -> None:
        """Say which trial each row of the following forward passes belongs to: LongTensor [B], values below `trials`."""
        raise NotImplementedError

    def off(self) -> None:
        """The base model again; hooks stay attached and do nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError
