"""config.toml written from the settings: each with its one description as the comment above it."""

from __future__ import annotations

import textwrap
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Table
from tomlkit.toml_document import TOMLDocument

from bruno.settings.console import Settings
from bruno.settings.engine import EngineSettings

IN_FORCE = """\
The settings in force here: command line, environment, file and defaults merged.
What each is when nobody says anything: bruno config show --defaults
"""
HEADER = """\
Every setting of bruno with its default. Delete what you don't change: what is absent keeps its default.
Order of precedence: command line > environment (BRUNO_SEARCH__TRIALS=50) > this file > default.
This file is generated: bruno config show --defaults
"""


def document(settings: Settings | None = None, *, header: str = HEADER) -> str:
    """The text of config.toml for these settings (default: the defaults), every field documented; `header` begins it."""
    root = tomlkit.document()
    for line in header.splitlines():
        root.add(tomlkit.comment(line))
    _write(root, settings or Settings(), Settings)
    return tomlkit.dumps(root)


def travelling(settings: EngineSettings) -> str:
    """The config.toml that travels with a run: the engine's settings that somebody said, and no others.

    What was left to its default stays absent, so that the engine can tell the two apart (a behaviour's defaults give way to
    the first only); the defaults are the same on the machine, because the engine's wheel is built from this installation.
    """
    engine = {
        name: getattr(settings, name) for name in EngineSettings.model_fields if name in settings.model_fields_set
    }
    values = {
        name: value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value
        for name, value in engine.items()
    }
    return tomlkit.dumps({name: value for name, value in values.items() if value != {}})


def _write(container: TOMLDocument | Table, values: BaseModel, shape: type[BaseModel]) -> None:
    tables: list[tuple[str, BaseModel | dict[str, Any]]] = []
    for name, info in shape.model_fields.items():
        value = getattr(values, name)
        if isinstance(value, BaseModel | dict):
            tables.append((name, value))
            continue
        container.add(tomlkit.nl())
        for line in textwrap.wrap(" ".join((info.description or "").split()), 110):
            container.add(tomlkit.comment(line))
        container.add(name, value)
    for name, value in tables:
        container.add(tomlkit.nl())
        table = tomlkit.table()
        about = (type(value).__doc__ if isinstance(value, BaseModel) else shape.model_fields[name].description) or ""
        for line in textwrap.wrap(" ".join(about.split()), 110):
            table.add(tomlkit.comment(line))
        if isinstance(value, BaseModel):
            _write(table, value, type(value))
        else:
            for key, item in value.items():
                table.add(key, item.model_dump(exclude_defaults=True))
        container.add(name, table)
