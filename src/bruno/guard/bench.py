"""The guard measured on what ships with it: the examples of its own rule files, and lines made to take long. Reads a clock.

Other people's commands, and the corpora of the tests, are measured with the same functions by benchmarks/guard.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from bruno.guard.command import check
from bruno.guard.command_rules import CommandRules
from bruno.guard.phrases import ambiguous
from bruno.guard.rules import Rules
from bruno.guard.shapes import Level

BOMBS = {
    "substitutions": "$(echo " * 400 + "x" + ")" * 400,
    "unclosed": "echo " + "$(echo " * 300,
    "pipeline": "|".join(["cat"] * 800),
    "shells": "echo x" + "|sh" * 800,
    "braces": "{a,b}" * 800,
    "nested braces": "{" * 500 + "a,b" + "}" * 500,
    "wrappers": "sudo " * 800 + "ls",
    "unclear wrappers": "sudo --x " * 400 + "rm",
    "eval": "eval " * 800 + "ls",
    "sh -c": "bash -c " * 400 + "ls",
    "backticks": "`" * 3000,
    "quotes": "'" * 4001,
    "long": "ls " + "a" * 100_000,
    "unicode": "é" * 2000,
    "assignments": "".join(f"a{number}=x;" for number in range(600)),
    "brackets": ")" * 4090,
    "cases": "x)" * 2045,
    "late cases": "ls;" * 340 + "x) " * 1000,
    "functions": "ls " + "f()" * 1360,
    "arrays": "a=(" * 1360,
    "open redirects": "`>*" * 1363,
    "open substitutions": "$(& ; rm k" * 409,
    "short pipes": "~|" * 2040,
    "many shells": "bash -c 'bash -c \"ls\"';" * 150,
}
"""Lines that are cheap to write and dear to read: nested, long, unclosed. None of them is ever allowed."""


def timed(command: str, rules: CommandRules, git_remote: str = "") -> float:
    """CPU milliseconds of one verdict in this thread."""
    start = time.thread_time()
    check(command, rules, git_remote=git_remote)
    return (time.thread_time() - start) * 1e3


def latencies(commands: Sequence[str], rules: CommandRules, rounds: int) -> dict[str, float]:
    """`p50_ms`, `p99_ms` and `max_ms` over `rounds` readings of each command."""
    times = sorted(timed(command, rules) for _ in range(rounds) for command in commands)
    return {
        "p50_ms": round(statistics.median(times), 4),
        "p99_ms": round(times[int(len(times) * 0.99)], 4),
        "max_ms": round(times[-1], 3),
    }


def bombs(rules: CommandRules) -> dict[str, float]:
    """CPU milliseconds of each bomb, the best of three: what it takes, not what else the machine does."""
    return {name: round(min(timed(bomb, rules) for _ in range(3)), 2) for name, bomb in BOMBS.items()}


def verdicts(commands: Sequence[str], rules: CommandRules) -> dict[str, int]:
    """How many of the commands get each verdict."""
    found = [check(command, rules).verdict for command in commands]
    return {level.name: found.count(level.name) for level in Level} | {"commands": len(found)}


def examples(rules: CommandRules) -> list[str]:
    """Every example command of the rule files, once."""
    shapes = [each for name in rules.names() for each in (*rules.programs[name].allow, *rules.programs[name].rule)]
    return list(dict.fromkeys(example for shape in shapes for example in (*shape.match, *shape.no_match)))


def bench(commands: CommandRules, rules: Rules, *, rounds: int = 3) -> dict[str, Any]:
    """The figures of `bruno guard bench`."""
    start = time.thread_time()
    failing = [*commands.check_all(), *commands.problems, *rules.problems]
    checked = (time.thread_time() - start) * 1e3
    lines = examples(commands)
    vague = [example for rule in rules.phrases.phrase for example in rule.match]
    clear = [example for rule in rules.phrases.phrase for example in rule.no_match]
    slow = bombs(commands)
    return {
        "programs": len(commands.names()),
        "examples": verdicts(lines, commands),
        "failing_examples": len(dict.fromkeys(failing)),
        "phrases": {"vague": len(vague), "missed": sum(ambiguous(one, rules) is None for one in vague)},
        "clear_phrases": {"clear": len(clear), "asked": sum(ambiguous(one, rules) is not None for one in clear)},
        "all_examples_ms": round(checked, 2),
        **latencies(lines, commands, rounds),
        "bombs_ms": slow,
        "bombs_allowed": verdicts(list(BOMBS.values()), commands)["allow"],
        "worst_bomb_ms": max(slow.values()),
    }
