"""What an extraction really used, and what it had to do without: nothing optional fails in silence or ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from bruno.engine.events import Emit, Fallback
from bruno.errors import BrunoError

T = TypeVar("T")


class NotApplicable(BrunoError):
    """An optional method cannot be used on these samples; the message is the reason, a clause without a full stop."""


class Record:
    """Collects `used` and `skipped` of a `DirectionSet`; each skip is also emitted as a `Fallback`.

    Attributes:
        used: methods that shaped the result, in order.
        skipped: method to "reason; continuing with what".
    """

    def __init__(self, emit: Emit | None = None) -> None:
        self.used: list[str] = []
        self.skipped: dict[str, str] = {}
        self._emit = emit

    def use(self, what: str) -> None:
        self.used.append(what)

    def skip(self, method: str, reason: str, instead: str) -> None:
        self.skipped[method] = f"{reason}; continuing with {instead}"
        if self._emit is not None:
            self._emit(Fallback(method=method, reason=reason, instead=instead))

    def attempt(self, method: str, make: Callable[[], T], instead: str) -> T | None:
        """What `make` gives; None, and a skip, where the method does not apply or its algebra does not converge."""
        try:
            return make()
        except NotApplicable as error:
            self.skip(method, str(error), instead)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            self.skip(method, f"the decomposition failed: {str(error).splitlines()[0]}", instead)
        except torch.OutOfMemoryError:
            self.skip(method, "the device's memory does not hold it", instead)
        return None


def blocks_where(mask: torch.Tensor) -> str:
    """`[L + 1]` bool -> "block 3" or "blocks 0-2, 7": decoder blocks whose output it marks (index 0 is no block's)."""
    return block_list(i for i, there in enumerate(mask[1:].tolist()) if there)


def block_list(indices: Iterable[int]) -> str:
    """Ascending block numbers as ranges."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    return f"block {text}" if text.isdigit() else f"blocks {text}"
