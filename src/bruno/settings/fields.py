"""The list of every setting there is, read off the pydantic models: dotted name, type, description, default.

Help, config.toml, the command line's parser and the messages about unknown names all come from this one list.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bruno.settings.console import Settings


@dataclass(frozen=True)
class Setting:
    """One leaf: `name` is dotted (`search.trials`), `group` its table ("" at the top level)."""

    name: str
    group: str
    info: FieldInfo

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_bool(self) -> bool:
        return self.info.annotation is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.info.annotation) is list

    @property
    def is_table(self) -> bool:
        """Tables keyed by the user's own names (`[models.NAME]`): set in a file, not on the command line."""
        return get_origin(self.info.annotation) is dict

    @property
    def default(self) -> Any:
        return self.info.get_default(call_default_factory=True)

    @property
    def description(self) -> str:
        return " ".join((self.info.description or "").split())


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", prefix.rstrip("."), info)


@cache
def all_settings() -> dict[str, Setting]:
    """Every leaf setting by dotted name, in the order of the models."""
    return {setting.name: setting for setting in _walk(Settings)}


@cache
def short_names() -> dict[str, str]:
    """Leaf names that stand in one group only, so that `--trials` may be said for `--search.trials`."""
    seen: dict[str, list[str]] = {}
    for name, setting in all_settings().items():
        seen.setdefault(setting.leaf, []).append(name)
    return {leaf: names[0] for leaf, names in seen.items() if len(names) == 1}


def nearest(name: str, names: list[str] | None = None) -> str:
    """`Did you mean ...?` with the closest names, or a pointer to the list; for messages about unknown ones."""
    pool = names if names is not None else [*all_settings(), *short_names()]
    close = difflib.get_close_matches(name, pool, n=3, cutoff=0.55)
    if not close and "." in name:
        close = difflib.get_close_matches(name.rpartition(".")[2], pool, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(dict.fromkeys(close))}?"
    return "All settings: bruno abliterate --help, or config.toml"
