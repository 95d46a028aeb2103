"""The verbs on what a run left behind, as the engine's command line takes them: `explain RUN`, `export RUN --trial N`,
`reproduce FILE`.

Reads arguments and prints; the work is in `explain.py`, `export/again.py` and `reproduce.py`, of which only the first
does without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bruno.engine.log import one_line
from bruno.errors import InputError


class _Options(argparse.ArgumentParser):
    """A parser whose errors are one clear line, as every other of the engine's."""

    def __init__(self, verb: str) -> None:
        super().__init__(prog=verb, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def explain(argv: Sequence[str]) -> int:
    """`explain FOLDER [--json] [--plot FILE.png|FILE.html]`.

    Raises:
        BrunoError: a wrong option, no run in the folder, or a plot that cannot be drawn.
    """
    options = _Options("explain")
    options.add_argument("folder", type=Path)
    options.add_argument("--json", action="store_true")
    options.add_argument("--plot", type=Path)
    given = options.parse_args(list(argv))
    from bruno.engine.explain import explain as read
    from bruno.engine.explain_text import lines

    run = read(given.folder)
    if given.json:
        _say(json.dumps(run.model_dump(mode="json"), ensure_ascii=True))
    else:
        for line in lines(run):
            _say(line)
    if given.plot is not None:
        from bruno.engine.explain_plot import plot

        drawn = plot(run, given.folder, given.plot)
        if not given.json:
            _say(f"Plot: {drawn}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(one_line(text) + "\n")
