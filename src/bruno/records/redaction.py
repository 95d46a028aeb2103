"""Nothing enters the database before secrets are out of it: `settings.secrets.redact` applied through any plain structure."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlmodel import SQLModel

from bruno.settings.secrets import redact

Row = TypeVar("Row", bound=SQLModel)


def redacted(value: Any) -> Any:
    """The same value with every string in it redacted (dictionary keys too); numbers, times and None as they are."""
    if isinstance(value, str):
        return redact(str(value))
    if isinstance(value, dict):
        return {redact(str(key)): redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def redacted_row(row: Row) -> Row:
    """A new row with its text fields redacted in place."""
    for name in type(row).model_fields:
        setattr(row, name, redacted(getattr(row, name)))
    return row
