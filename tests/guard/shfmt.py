# ruff: noqa: E501  (tables read better with long lines)
"""A second opinion on shell syntax: the command words that shfmt (another parser, in Go) sees in a line. Tests and benchmarks only."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bruno.guard.words import decoded_ansi


def program() -> str | None:
    """Where the PyPI wheel shfmt-py puts its binary: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("shfmt")
    return str(beside) if beside.is_file() else shutil.which("shfmt")


def command_words(line: str) -> list[str] | None:
    """First words of all simple commands, "?" for one that is not literal; None when shfmt cannot parse the line."""
    done = subprocess.run(
        [program() or "shfmt", "--to-json"], input=line.encode(), capture_output=True, timeout=20, check=False
    )
    return None if done.returncode else list(_heads(json.loads(done.stdout)))


def _heads(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for one in node:
            yield from _heads(one)
    elif isinstance(node, dict):
        if node.get("Type") == "CallExpr" and node.get("Args"):
            yield _literal(node["Args"][0]["Parts"])
        elif node.get("Type") in ("DeclClause", "LetClause", "TimeClause", "CoprocClause"):
            yield "?" + node["Type"]
        for one in node.values():
            yield from _heads(one)


def _literal(parts: list[dict[str, Any]]) -> str:
    said = ""
    for part in parts:
        kind = part["Type"]
        if kind == "Lit":
            said += part["Value"].replace("\\\n", "").replace("\\", "")
        elif kind == "SglQuoted":
            said += decoded_ansi(part.get("Value", "")) if part.get("Dollar") else part.get("Value", "")
        elif kind == "DblQuoted":
            said += _literal(part.get("Parts") or [])
        else:
            return "?"
    return said


ATOMS = [
    "ls", "cat", "rm", "echo", "kill", "git", "sudo", "xargs", "env", "-la", "x", "a b", "'", '"', "`", "$(", ")", "(", "{", "}", ";", "&", "&&", "|", "||",
    "\n", "\\\n", "\\", "$x", "${x}", "${x:-rm y}", "$((1+2))", "<", ">", ">>", "2>&1", "/dev/null", "<<E\nrm z\nE\n", "<<'E'\nq\nE\n", "<<<", "#", "!", "[[", "]]", "[", "]",
    "if", "then", "fi", "for i in", "do", "done", "while", "case x in", "esac", ";;", "f()", "function f", "'a b'", '"c $(rm w) d"', "$'\\x72m'", "r''m", "time", "coproc",
    "<(", ">(", "{a,b}", "*", "?", "~", "=", "X=1", "&>", "|&", "\t", " ", " ", " ", " ", " ", "-exec", "{}", "\\;", "--", "&& rm q", "; rm k", "$@", "$1", "select", "until", "in",
]  # fmt: skip


def lines(count: int, seed: int) -> Iterator[str]:
    """Strings of shell atoms, most of them strange."""
    draw = random.Random(seed)
    for _ in range(count):
        joint = draw.choice(["", " ", " "])
        yield joint.join(draw.choice(ATOMS) for _ in range(draw.randint(1, 9)))


# What shfmt calls a command and bash runs inside itself, and words that are not literal: the guard follows constants.
QUIET = frozenset({"?", "?DeclClause", "?LetClause", "?TimeClause", "?CoprocClause"})


def disagreements(count: int, seed: int) -> tuple[int, list[str]]:
    """How many lines the guard allows, and those of them in which shfmt sees a command word that the guard did not."""
    from bruno.guard.command import check
    from bruno.guard.shapes import Level
    from bruno.guard.shell import read_script

    allowed, bad = 0, []
    for line in lines(count, seed):
        if check(line).level is not Level.allow or not line.strip():
            continue
        allowed += 1
        seen = command_words(line)
        ours = {simple.words[0].text for simple in read_script(line).commands if simple.words}
        ours |= {word.text for simple in read_script(line).commands for word in simple.words}
        if seen is None or not {head for head in seen if head not in QUIET} <= ours:
            bad.append(line)
    return allowed, bad
