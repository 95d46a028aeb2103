"""`bruno guard`: offered as soon as the guard can read raw commands (`bruno.guard.command`)."""

from __future__ import annotations

from importlib.util import find_spec

import typer

app = typer.Typer(rich_markup_mode=None)


def available() -> bool:
    """Whether there is anything below `bruno guard`."""
    return bool(app.registered_commands) and find_spec("bruno.guard.command") is not None
