"""Where prompts come from: the demo's own files, local files, or data sets on the hub. The only module that reads
prompt data.

Everything but the demo goes through `datasets`, imported when first needed. A source that cannot be read is an error
that says which one and what to do; an empty one is an error too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from bruno.engine.events import Emit, Notice
from bruno.errors import InputError

if TYPE_CHECKING:
    from bruno.engine.data.behaviours import Behaviour
    from bruno.settings.engine import EngineSettings

_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COLUMNS = ("text", "prompt", "instruction", "question", "goal")
_SMALLEST = 4


class Source(BaseModel):
    """One list of prompts, as a behaviour file or a setting names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    """`demo`, a hub id, a folder written by `save_to_disk`, or a .txt, .jsonl, .json, .csv or .parquet file."""
    split: str = "train"
    """Split of a hub data set, slices included (`train[:400]`); for the demo: train, search or heldout."""
    config: str = ""
    """Configuration of a hub data set that has several."""
    column: str = ""
    """Column that holds the prompt ("" = text, prompt, instruction, question or goal, or the only text column)."""
    kind: str = ""
    """The demo's kind: over_refused or ordinary."""


@dataclass(frozen=True)
class PromptSets:
    """Every prompt a run uses. No held-out prompt is in another set of its side."""

    bad_train: list[str]
    good_train: list[str]
    bad_search: list[str]
    good_search: list[str]
    bad_held_out: list[str]
    good_held_out: list[str]


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
    sets = PromptSets(
        bad_train=_first(bad[0], data.bad_count),
        good_train=_first(good[0], data.good_count),
        bad_search=_first(bad[1], scoring.bad_count),
        good_search=_first(good[1], scoring.good_count),
        bad_held_out=_unseen("bad", bad, emit),
        good_held_out=_unseen("good", good, emit),
    )
    for field in fields(sets):
        if len(getattr(sets, field.name)) < _SMALLEST:
            raise InputError(
                f"The set {field.name} has {len(getattr(sets, field.name))} prompts; a run needs {_SMALLEST} in each",
                fix="Give a larger source or larger counts",
            )
    return sets


def read(source: Source) -> list[str]:
    """The prompts of one source, in order, blank ones left out.

    Raises:
        InputError: it cannot be read, has no such split or column, or is empty.
    """
    if source.source == "demo":
        return _read_demo(source)
    path = Path(source.source).expanduser()
    rows = _read_local(path) if path.exists() else _read_hub(source)
    prompts = [text.strip() for text in _column(rows, source) if isinstance(text, str) and text.strip()]
    if not prompts:
        raise InputError(f"The prompt source {source.source} is empty")
    return prompts


def _side(name: str, own: str, behaviour_side, seed: int, emit: Emit) -> tuple[list[str], list[str], list[str]]:
    """Train, search and held-out prompts of one side."""
    if not own:
        return read(behaviour_side.train), read(behaviour_side.search), read(behaviour_side.held_out)
    prompts = list(dict.fromkeys(read(Source(source=own))))
    random.Random(seed).shuffle(prompts)  # noqa: S311  (a reproducible split, not a secret)
    half, quarter = len(prompts) // 2, len(prompts) // 4
    parts = prompts[:half], prompts[half : half + quarter], prompts[half + quarter :]
    sizes = f"{len(parts[0])} for directions, {len(parts[1])} for the search, {len(parts[2])} held out"
    emit(Notice(text=f"The {name} prompts of {own} were shuffled and divided: {sizes}"))
    return parts


def _unseen(name: str, side: tuple[list[str], list[str], list[str]], emit: Emit) -> list[str]:
    """The held-out prompts without those that also stand in the train or search set."""
    seen = {text.casefold() for text in (*side[0], *side[1])}
    unseen = [text for text in side[2] if text.casefold() not in seen]
    if len(unseen) < len(side[2]):
        dropped = len(side[2]) - len(unseen)
        emit(Notice(text=f"{dropped} held-out {name} prompts also stand in the other sets and were left out"))
    return unseen


def _first(prompts: list[str], count: int) -> list[str]:
    if count > len(prompts):
        raise InputError(f"{count} prompts were asked for where the source has {len(prompts)}", fix="Lower the count")
    return prompts[:count] if count else prompts


def _read_demo(source: Source) -> list[str]:
    from bruno.engine import demo

    return demo.prompts(source.split, source.kind)  # type: ignore[arg-type]  (it names unknown ones itself)


def _read_local(path: Path):
    """Rows of a local file or of a folder saved by `save_to_disk`."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                raise InputError(
                    f"The folder {path} holds several splits", fix=f"Name one: {', '.join(sorted(map(str, loaded)))}"
                )
            return loaded
        if path.suffix not in _BUILDERS:
            known = ", ".join(_BUILDERS)
            raise InputError(
                f"Prompts cannot be read from {path}", fix=f"Files may be {known}, or a save_to_disk folder"
            )
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(f"Prompts cannot be read from {path} ({_reason(error)})") from error


def _read_hub(source: Source):
    """Rows of a data set on the hub, or in the local cache when there is no network."""
    import datasets
    from datasets.exceptions import DatasetsError

    if Path(source.source).suffix in _BUILDERS or source.source.count("/") > 1 or source.source.startswith((".", "~")):
        raise InputError(f"There is no prompt file {source.source}", fix="Check the path")
    try:
        return datasets.load_dataset(source.source, source.config or None, split=source.split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(
            f"The data set {source.source} ({source.split}) cannot be read ({_reason(error)})",
            fix="Check its name and the network; a gated one needs HF_TOKEN; or give a local file in data.bad and data.good",
        ) from error


def _column(rows, source: Source) -> list[object]:
    names = list(rows.column_names)
    if source.column:
        chosen = source.column
    else:
        texts = [name for name in names if getattr(rows.features[name], "dtype", "") in ("string", "large_string")]
        known = [name for name in _COLUMNS if name in texts]
        chosen = known[0] if known else texts[0] if len(texts) == 1 else ""
    if chosen not in names:
        wanted = f"no column {chosen}" if chosen else "no column that is surely the prompt"
        raise InputError(f"The prompt source {source.source} has {wanted}; its columns are {', '.join(names)}")
    return list(rows[chosen])


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: libraries wrap the useful sentence in several general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
