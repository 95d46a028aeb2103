"""Prompts that lie on this machine: text, JSON, JSON lines, CSV and parquet files, folders saved by `save_to_disk`, and
the prompts that ship beside the behaviours and the demo.

Reads those files and nothing else. Files go through `datasets`, imported when first needed.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from bruno.engine.data.source import SHIPPED, SUFFIXES, Source
from bruno.errors import InputError


def read_demo(source: Source) -> list[str]:
    """The demo's prompts of one split and kind."""
    from bruno.engine.demo.texts import prompts

    found = prompts(source.split_name, source.kind)  # type: ignore[arg-type]  (it names unknown ones itself)
    return [found[row] for row in source.span(len(found))]


def read_shipped(source: Source) -> list[str]:
    """Prompts of one split and kind that lie beside a shipped behaviour, as `NAME.jsonl`.

    Raises:
        InputError: no such file, split or kind.
    """
    name = source.source.removeprefix(SHIPPED)
    file = files("bruno.engine") / "behaviours" / f"{name}.jsonl"
    if not name.replace("-", "").isalnum() or not file.is_file():
        raise InputError(f"No prompts are shipped for {name!r}", fix="Name a shipped behaviour that has its own")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row["text"] for row in rows if (row["split"], row["kind"]) == (source.split_name, source.kind)]
    if not found:
        known = sorted({f"split={row['split']},kind={row['kind']}" for row in rows})
        raise InputError(
            f"{SHIPPED}{name} has no prompts of split {source.split_name!r} and kind {source.kind!r}",
            fix=f"It has {'; '.join(known)}",
        )
    return [found[row] for row in source.span(len(found))]


def read_local(path: Path, source: Source) -> Any:
    """Rows of a local file or of a folder saved by `save_to_disk`, as a `datasets.Dataset`.

    Raises:
        InputError: no such file, an unknown kind of file, no such split or rows, or content that cannot be read.
    """
    if not path.exists():
        raise InputError(f"There is no prompt file {source.source}", fix="Check the path")
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if path.is_dir():
            rows = _split(datasets.load_from_disk(str(path)), path, source)
        elif path.suffix in SUFFIXES:
            rows = datasets.load_dataset(SUFFIXES[path.suffix], data_files=str(path), split="train")
        else:
            raise InputError(
                f"Prompts cannot be read from {path}",
                fix=f"Files may be {', '.join(SUFFIXES)}, or a save_to_disk folder",
            )
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(f"Prompts cannot be read from {path} ({reason(error)})") from error
    return rows.select(source.span(len(rows)))  # type: ignore[union-attr]


def _split(loaded: Any, path: Path, source: Source) -> Any:
    """The split that is asked for, of a saved folder with one or several."""
    import datasets

    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if source.split_name not in loaded:
        names = ", ".join(sorted(map(str, loaded)))
        raise InputError(
            f"The folder {path} has no split {source.split_name}", fix=f"Name one with ::split=...: {names}"
        )
    return loaded[source.split_name]


def reason(error: BaseException) -> str:
    """The innermost cause in one line: libraries wrap the useful sentence in several general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
