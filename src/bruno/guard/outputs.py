"""What a command surely prints, for the few that only repeat their arguments or input. Pure.

It exists so that a command hidden in `$(echo ...)`, or in a literal piped through `base64 -d` into a shell, is read like
any other.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from bruno.guard.words import UNKNOWN, Word, decoded_ansi

if TYPE_CHECKING:
    from bruno.guard.script import Simple

_MOST = 4096


def output_of(simple: Simple, redirected: bool = False) -> str | None:
    """The text it prints, or None when that is not surely known. May contain `UNKNOWN` in places.

    `redirected`: what goes into a file counts too.
    """
    if not simple.words or not simple.words[0].known:
        return None
    if not redirected and any(redirect.op in (">", ">>", "&>", ">|") for redirect in simple.redirects):
        return None
    program = simple.words[0].text.rsplit("/", 1)[-1]
    maker = _MAKERS.get(program)
    said = maker(simple.words[1:], simple.stdin) if maker else None
    return said if said is not None and len(said) <= _MOST else None


def _echo(words: list[Word], stdin: str | None) -> str | None:
    del stdin
    flags = ""
    while words and re.fullmatch(r"-[neE]+", words[0].text):
        flags += words[0].text
        words = words[1:]
    said = " ".join(word.text for word in words)
    if any(word.splits or word.glob for word in words):
        said = said.replace(UNKNOWN, f" {UNKNOWN} ")
    return (decoded_ansi(said) if "e" in flags else said) + ("" if "n" in flags else "\n")


def _printf(words: list[Word], stdin: str | None) -> str | None:
    del stdin
    if not words or words[0].text.startswith("-"):
        return None
    shape, arguments = decoded_ansi(words[0].text), [word.text for word in words[1:]]
    fields = re.findall(r"%(.)", shape)
    if any(one not in "sb%" for one in fields):
        return None
    takes = sum(one != "%" for one in fields)
    said = ""
    rounds = max(1, -(-len(arguments) // takes)) if takes else 1
    for _ in range(min(rounds, 64)):
        said += re.sub(
            r"%(.)", lambda match: "%" if match[1] == "%" else (arguments.pop(0) if arguments else ""), shape
        )
    return said


def _cat(words: list[Word], stdin: str | None) -> str | None:
    return stdin if all(word.text == "-" for word in words) else None


def _tee(words: list[Word], stdin: str | None) -> str | None:
    del words
    return stdin


def _base64(words: list[Word], stdin: str | None) -> str | None:
    if (
        stdin is None
        or UNKNOWN in stdin
        or [word.text for word in words] not in (["-d"], ["--decode"], ["-D"], ["-di"])
    ):
        return None
    try:
        return base64.b64decode("".join(stdin.split())).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def _xxd(words: list[Word], stdin: str | None) -> str | None:
    if stdin is None or not {word.text for word in words} <= {"-r", "-p", "-ps"} or len(words) < 2:
        return None
    try:
        return bytes.fromhex("".join(stdin.split())).decode("utf-8")
    except (UnicodeDecodeError, ValueError):
        return None


def _rev(words: list[Word], stdin: str | None) -> str | None:
    if stdin is None or words or UNKNOWN in stdin:
        return None
    return "\n".join(line[::-1] for line in stdin.split("\n"))


_MAKERS = {"echo": _echo, "printf": _printf, "cat": _cat, "base64": _base64, "xxd": _xxd, "rev": _rev, "tee": _tee}
