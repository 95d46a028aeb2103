"""The first argument: a command, a model, or a slip of the finger.

`bruno MODEL` and `bruno --model MODEL` mean `bruno abliterate ...`. A word that looks like neither a model nor a command is
an error that names the nearest commands: loading a model must never be how a typing error is found.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from bruno.errors import InputError

COMMANDS = frozenset(
    {
        *(
            "do",
            "plan",
            "progress",
            "runs",
            "instances",
            "offers",
            "fit",
            "stop",
            "destroy",
            "fetch",
            "resume",
            "costs",
        ),
        *(
            "exec",
            "chat",
            "abliterate",
            "worker",
            "explain",
            "export",
            "reproduce",
            "config",
            "sandbox",
            "guard",
            "audit",
            "concern",
        ),
    }
)
_FLAGS = {"--sandbox", "--readonly", "--version", "--help", "-h"}
_TAKES_VALUE = {"--config"}


def route(arguments: Sequence[str]) -> list[str]:
    """`arguments` with `abliterate` put in front where a model or an engine setting stands first.

    Raises:
        InputError: the first word is neither a command nor a model.
    """
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in _FLAGS or argument.startswith("--config="):
            position += 1
        elif argument in _TAKES_VALUE:
            position += 2
        else:
            break
    else:
        return list(arguments)
    word = arguments[position]
    if word in COMMANDS:
        return list(arguments)
    if word.startswith("-") or _is_model(word):
        return ["abliterate", *arguments]
    raise InputError(f"{word!r} is neither a command nor a model", fix=_nearest(word, arguments[position + 1 :]))


def _is_model(word: str) -> bool:
    if any(letter.isspace() for letter in word):
        return False
    if "/" in word or "\\" in word or Path(word).is_dir():
        return True
    from bruno.settings.catalogue import MODELS

    if word.casefold() in MODELS:
        return True
    from bruno.settings.load import load

    return word in load().models


def _nearest(word: str, rest: Sequence[str]) -> str:
    from bruno.settings.catalogue import MODELS

    sentence = [word, *(other for other in rest if not other.startswith("-"))]
    if len(" ".join(sentence).split()) > 1:
        return f'A sentence goes to: bruno do "{" ".join(sentence)}"'
    close = difflib.get_close_matches(word, [*COMMANDS, *MODELS], n=2, cutoff=0.7)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return "bruno --help lists the commands; a model is an alias of config.toml, a hub id (owner/name) or a folder"
