"""How the console was left: what to say on the terminal, and whether a conversation with a model comes next."""

from __future__ import annotations

from dataclasses import dataclass

from bruno.errors import BrunoError


@dataclass(frozen=True)
class Leave:
    """The console's result.

    Args:
        lines: what goes on and what it costs, sanitised.
        talk: model (and the one beside it) to talk to before the console opens again.
        error: why it could not open.
    """

    lines: tuple[str, ...] = ()
    talk: tuple[str, str | None] | None = None
    error: BrunoError | None = None
