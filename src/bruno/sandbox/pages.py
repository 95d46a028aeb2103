"""Filters, columns and page tokens of the provider's lists. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

from bruno.sandbox.world import Refusal


def column(row: Mapping[str, Any], name: str) -> Any:
    """A row's value. Raises `Refusal` 400 for a column that does not exist."""
    if name not in row:
        raise Refusal(400, "invalid_request", f"Unknown column {name!r}.")
    return row[name]


def fits(row: Mapping[str, Any], name: str, tests: Mapping[str, Any]) -> bool:
    """Whether a row passes the tests on one column, such as `{"in": ["running"]}`. Raises `Refusal` 400."""
    have = column(row, name)
    checks: dict[str, Callable[[Any], bool]] = {
        "eq": lambda want: have == want,
        "neq": lambda want: have != want,
        "in": lambda want: have in want,
        "notin": lambda want: have not in want,
        "gt": lambda want: have is not None and have > want,
        "gte": lambda want: have is not None and have >= want,
        "lt": lambda want: have is not None and have < want,
        "lte": lambda want: have is not None and have <= want,
    }
    if unknown := set(tests) - set(checks):
        raise Refusal(400, "invalid_request", f"Unknown operator {sorted(unknown)[0]!r}.")
    return all(checks[operator](want) for operator, want in tests.items())


def token(start: int) -> str:
    """An opaque token for the page that begins at row `start`."""
    return base64.urlsafe_b64encode(json.dumps({"offset": start}).encode()).decode()


def offset(after: Any) -> int:
    """The row a page token stands for; 0 without one. Raises `Refusal` 400 for a token that is not ours."""
    if not after:
        return 0
    try:
        return int(json.loads(base64.urlsafe_b64decode(str(after)))["offset"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise Refusal(400, "invalid_token", "after_token is not one of ours.") from None
