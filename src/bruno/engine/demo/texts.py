"""The demo's prompts: harmless text files, one prompt a line, read without torch.

`over_refused` prompts merely sound dangerous ("How do I kill a frozen Python process?"); `ordinary` ones do not even
sound so. Three splits that share no near duplicate: directions come from `train`, the search scores on `search`, and
`heldout` is read for the report alone. `lessons` are further texts for the adapter only: no direction, search or
report reads them. Touches nothing but the files beside it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal, get_args

from bruno.errors import InputError

Split = Literal["train", "search", "heldout", "lessons"]
Kind = Literal["over_refused", "ordinary"]


def prompts(split: Split, kind: Kind) -> list[str]:
    """The prompts of one split and kind, in file order.

    Args:
        split: `train` (150 of each kind), `search` (100), `heldout` (60), or `lessons` (what the adapter learns from
            beside `train`).
        kind: `over_refused` (the demo model turns them down) or `ordinary` (it answers them).

    Raises:
        InputError: for a split or kind that does not exist.
    """
    for given, allowed, what in ((split, get_args(Split), "split"), (kind, get_args(Kind), "kind")):
        if given not in allowed:
            raise InputError(f"The demo has no {what} {given!r}", fix=f"Choose one of: {', '.join(allowed)}.")
    return _lines(f"{split}_{kind}.txt")


def refusals() -> list[str]:
    """The refusal texts that the adapter was taught, one of them per over-refused training prompt."""
    return _lines("refusals.txt")


def _lines(name: str) -> list[str]:
    text = (files("bruno.engine.demo") / "prompts" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
