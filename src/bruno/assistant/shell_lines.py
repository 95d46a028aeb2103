"""Sentences that are shell lines: `!`, `!!`, `exec ... on TARGET`, `run ... on TARGET`. The line is kept byte for byte.

They are found before any other reading, since what stands in a shell line is no sentence. Which instance is never guessed: the
last ` on WORD` names it, and without one it is the only instance of bruno's that runs.
"""

from __future__ import annotations

import re
from collections.abc import Container

from pydantic import ValidationError

from bruno.intents import RunCommand

_HERE = re.compile(r"!(?!!)\s*(\S.*)", re.DOTALL)
_THERE = re.compile(r"!!\s*(\S.*)", re.DOTALL)
_EXEC = re.compile(r"(?i:exec)\s+(\S.*)", re.DOTALL)
_RUN = re.compile(r"(?i:run)\s+(\S.*)", re.DOTALL)
_ON = re.compile(r"(.*\S)\s+on\s+(?:(?:the\s+)?instance\s+)?#?([A-Za-z0-9][\w.:-]*)", re.DOTALL)
_IDENTITY = re.compile(r"\d{2,}|[a-z][a-z0-9]*(?:-[a-z0-9.]+)*-(?=[a-z0-9]*\d)[a-z0-9]+")
"""What only an instance is called: an id, or a label such as bruno's."""


def local_line(words: str) -> str | None:
    """The shell line of `! LINE`, for the operator's own machine; None when it is no such line."""
    found = _HERE.fullmatch(words)
    return found[1] if found else None


def instance_line(words: str) -> RunCommand | None:
    """`!! LINE` (all of it is the line) and `exec LINE [on TARGET]`; None when it is neither."""
    there = _THERE.fullmatch(words)
    if there:
        return _intent(there[1], None)
    found = _EXEC.fullmatch(words)
    if found is None:
        return None
    named = _ON.fullmatch(found[1])
    return _intent(named[1], named[2]) if named else _intent(found[1], None)


def run_sentence(words: str, gpus: Container[str]) -> RunCommand | None:
    """`run LINE on TARGET`, where the target can only be an instance; `run demo on an H200` is no such sentence."""
    found = _RUN.fullmatch(words.strip())
    named = _ON.fullmatch(found[1]) if found else None
    if named is None or not _IDENTITY.fullmatch(named[2]) or named[2] in gpus:
        return None
    return _intent(named[1], named[2])


def _intent(line: str, target: str | None) -> RunCommand | None:
    try:
        return RunCommand(command=line, target=target) if target else RunCommand(command=line)
    except ValidationError:
        return None
