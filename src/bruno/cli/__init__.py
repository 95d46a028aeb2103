"""The command line: thin commands over the one service, `operator`. The accessible twin of every view of the console.

It parses, prints and asks; it computes no cost and talks to no machine. One of the two places where a permit is made is
here (`confirm.py`). Importing this package imports nothing else, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own arguments) and return its exit code."""
    from bruno.cli.boundary import run

    return run(argv)
