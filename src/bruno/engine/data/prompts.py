"""A run's prompts: every set that the directions, the search and the report need, read from where they are named.

Reads prompt sources (`local.py`, `hub.py`) and nothing else. A source that cannot be read is an error that says which
one and what to do; an empty one is an error too. No held-out prompt is ever in a set that the directions or the search
see.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from bruno.engine.data.source import DEMO, SHIPPED, Source
from bruno.engine.events import Emit, Notice
from bruno.errors import InputError

if TYPE_CHECKING:
    from bruno.engine.data.behaviours import Behaviour, Side
    from bruno.settings.engine import EngineSettings

__all__ = ["PromptSets", "Source", "load_prompt_sets", "read"]

_COLUMNS = ("text", "prompt", "instruction", "question", "goal")
_SMALLEST = 4


@dataclass(frozen=True)
class PromptSets:
    """Every prompt a run uses. No held-out or evaluation prompt is in a train or search set."""

    bad_train: list[str]
    good_train: list[str]
    bad_search: list[str]
    good_search: list[str]
    bad_held_out: list[str]
    good_held_out: list[str]
    held_out_evaluation: dict[str, list[str]] = field(default_factory=dict)
    """The behaviour's evaluation sets, by name; read by the held-out report alone."""


def load_prompt_sets(settings: EngineSettings, behaviour: Behaviour, emit: Emit) -> PromptSets:
    """All prompt sets of a run: the behaviour's, or the person's own where `settings.data` names them.

    A source of one's own serves all three purposes: it is shuffled with the run's seed and divided, half for the
    directions, a quarter for the search, a quarter held out. Counts in `settings.data` and `settings.scoring` then
    shorten the sets.

    Raises:
        InputError: a source cannot be read, or gives fewer prompts than a set needs.
    """
    bad = _side("bad", settings.data.bad, behaviour.bad, settings.seed, emit)
    good = _side("good", settings.data.good, behaviour.good, settings.seed, emit)
    data, scoring = settings.data, settings.scoring
    seen = {text.casefold() for side in (bad, good) for part in side[:2] for text in part}
    report = scoring.held_out
    sets = PromptSets(
        bad_train=_first(bad[0], data.bad_count),
        good_train=_first(good[0], data.good_count),
        bad_search=_first(bad[1], scoring.bad_count),
        good_search=_first(good[1], scoring.good_count),
        bad_held_out=_unseen("held-out bad", bad[2], seen, emit),
        good_held_out=_unseen("held-out good", good[2], seen, emit),
        held_out_evaluation={
            name: _unseen(name, read(part.prompts), seen, emit)
            for name, part in (behaviour.evaluation if report else {}).items()
        },
    )
    named = {name: texts for name, texts in vars(sets).items() if isinstance(texts, list)}
    for name, texts in {**named, **sets.held_out_evaluation}.items():
        if len(texts) < _SMALLEST:
            raise InputError(
                f"The set {name} has {len(texts)} prompts; a run needs {_SMALLEST} in each",
                fix="Give a larger source or larger counts",
            )
    return sets


def read(source: Source, *, at_most: int = 0) -> list[str]:
    """The prompts of one source, in order, blank ones left out.

    Args:
        at_most: stop after so many prompts (0 = all that the source names).

    Raises:
        InputError: it cannot be read, has no such split, column or rows, or is empty.
    """
    prompts = (text.strip() for text in _texts(source) if isinstance(text, str) and text.strip())
    found = list(islice(prompts, at_most or None))
    if not found:
        raise InputError(f"The prompt source {source.source} is empty")
    return found


def _texts(source: Source) -> Iterable[object]:
    from bruno.engine.data import hub, local

    if source.source == DEMO:
        return local.read_demo(source)
    if source.source.startswith(SHIPPED):
        return local.read_shipped(source)
    path = source.path
    return _column(local.read_local(path, source) if path else hub.read_hub(source), source)


def _side(name: str, own: str, side: Side, seed: int, emit: Emit) -> tuple[list[str], list[str], list[str]]:
    """Train, search and held-out prompts of one side."""
    if not own:
        return read(side.train), read(side.search), read(side.held_out)
    prompts = list(dict.fromkeys(read(Source.parse(own))))
    random.Random(seed).shuffle(prompts)  # noqa: S311  (a reproducible split, not a secret)
    half, quarter = len(prompts) // 2, len(prompts) // 4
    parts = prompts[:half], prompts[half : half + quarter], prompts[half + quarter :]
    sizes = f"{len(parts[0])} for directions, {len(parts[1])} for the search, {len(parts[2])} held out"
    emit(Notice(text=f"The {name} prompts of {own} were shuffled and divided: {sizes}"))
    return parts


def _unseen(name: str, prompts: list[str], seen: set[str], emit: Emit) -> list[str]:
    """The prompts without those that also stand in a train or search set of either side."""
    unseen = [text for text in prompts if text.casefold() not in seen]
    if len(unseen) < len(prompts):
        dropped = len(prompts) - len(unseen)
        emit(Notice(text=f"{dropped} {name} prompts also stand in the other sets and were left out"))
    return unseen


def _first(prompts: list[str], count: int) -> list[str]:
    if count > len(prompts):
        raise InputError(f"{count} prompts were asked for where the source has {len(prompts)}", fix="Lower the count")
    return prompts[:count] if count else prompts


def _column(rows: Any, source: Source) -> list[object]:
    names = list(rows.column_names)
    if source.column:
        chosen = source.column
    else:
        texts = [name for name in names if getattr(rows.features[name], "dtype", "") in ("string", "large_string")]
        known = [name for name in _COLUMNS if name in texts]
        chosen = known[0] if known else texts[0] if len(texts) == 1 else ""
    if chosen not in names:
        wanted = f"no column {chosen}" if chosen else "no column that is surely the prompt"
        raise InputError(
            f"The prompt source {source.source} has {wanted}; its columns are {', '.join(names)}",
            fix="Name one with column=...",
        )
    return list(rows[chosen])
