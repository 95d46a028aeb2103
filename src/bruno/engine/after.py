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

from bruno.engine.log import Emitter, one_line
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


def reproduce(argv: Sequence[str]) -> int:
    """`reproduce FILE --out FOLDER [--search] [--model M] [--behaviour B] [--trust-remote-code]`; 0 only when the same.

    Raises:
        BrunoError: a wrong option, or a file that cannot be used; what happens later is an event of the folder's log.
    """
    options = _Options("reproduce")
    options.add_argument("file", type=Path)
    options.add_argument("--out", type=Path, default=Path("reproduced"))
    options.add_argument("--model", default="")
    options.add_argument("--behaviour", default="")
    options.add_argument("--search", action="store_true")
    options.add_argument("--trust-remote-code", action="store_true")
    given = options.parse_args(list(argv))
    from bruno.engine.recipe import read_recipe

    read_recipe(given.file)  # told before a folder is made

    def work(folder: Path, emit: Emitter) -> int:
        from bruno.engine.command import INTERRUPTED
        from bruno.engine.reproduce import Wish
        from bruno.engine.reproduce import reproduce as again

        same = again(
            Wish(
                file=given.file,
                out=folder,
                model=given.model,
                behaviour=given.behaviour,
                search=given.search,
                trust_remote_code=given.trust_remote_code,
            ),
            emit,
        )
        return INTERRUPTED if same is None else 0 if same else 1

    from bruno.engine.command import in_folder

    return in_folder(given.out, work)


def export(argv: Sequence[str]) -> int:
    """`export RUN_FOLDER --trial N [--trial M ...] [--name NAME] [--adapter] [--trust-remote-code]`.

    Raises:
        BrunoError: a wrong option, or no run in the folder.
    """
    options = _Options("export")
    options.add_argument("folder", type=Path)
    options.add_argument("--trial", type=int, action="append", default=[])
    options.add_argument("--name", default="")
    options.add_argument("--adapter", action="store_true")
    options.add_argument("--trust-remote-code", action="store_true")
    given = options.parse_args(list(argv))
    if not given.trial:
        raise InputError("export: no trial was named", fix="Say --trial with its number, as often as you like")
    from bruno.engine.export.again import settings_of

    settings = settings_of(given.folder, trust_remote_code=given.trust_remote_code)

    def work(folder: Path, emit: Emitter) -> int:
        from bruno.engine.export.again import export_again

        export_again(folder, settings, given.trial, emit, name=given.name, adapter=given.adapter)
        return 0

    from bruno.engine.command import in_folder

    return in_folder(given.folder, work, failures_logged=False)  # the run's own story has ended
