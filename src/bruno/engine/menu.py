"""The menu after a search: the trials that nothing beats, and a person who chooses which are saved.

Talks to two streams and nothing else. An answer is taken exactly or asked for again; the end of the input chooses nothing
by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from bruno.engine.search.choice import pareto_front
from bruno.engine.search.study import FinishedTrial
from bruno.errors import BrunoError

_HELP = "Any trial by number, several with blanks between, or none."


def choose_trials(
    trials: Sequence[FinishedTrial], source: IO[str] | None = None, target: IO[str] | None = None
) -> list[FinishedTrial]:
    """Show the front as a table and read which trials to save: their numbers, or `none`.

    Args:
        trials: every scored trial of the study; any of them may be chosen, on the front or not.
        source, target: the terminal (default: standard input and output).

    Returns:
        The chosen trials in the order they were named; empty for `none`.

    Raises:
        BrunoError: the input ended without an answer.
    """
    read: IO[str] = sys.stdin if source is None else source
    show: IO[str] = sys.stdout if target is None else target
    for line in table(pareto_front(trials)):
        show.write(line + "\n")
    show.write(f"{len(trials)} trials are scored; no other beats these. {_HELP}\n")
    by_number = {trial.number: trial for trial in trials}
    while True:
        show.write("Trials to save: ")
        show.flush()
        line = read.readline()
        if not line:
            raise BrunoError("No trial was chosen", fix="Start the same command again; the study is kept")
        try:
            return [by_number[number] for number in read_answer(line, by_number)]
        except ValueError as error:
            show.write(f"{error}\n")


def read_answer(line: str, known: Sequence[int] | dict[int, FinishedTrial]) -> list[int]:
    """`none`, or trial numbers with blanks between, each known and named once.

    Raises:
        ValueError: anything else, said in one sentence.
    """
    words = line.split()
    if not words:
        raise ValueError(_HELP)
    if words == ["none"]:
        return []
    numbers = []
    for word in words:
        if not (word.isascii() and word.isdecimal()):
            raise ValueError(f"{word!r} is no trial number. {_HELP}")
        number = int(word) if len(word) < 10 else -1
        if number not in known:
            raise ValueError(f"There is no scored trial {word[:20]}. {_HELP}")
        if number in numbers:
            raise ValueError(f"Trial {number} was named twice. {_HELP}")
        numbers.append(number)
    return numbers


def table(trials: Sequence[FinishedTrial]) -> list[str]:
    """Trials as aligned rows: number, refusals, KL in nats, and KL over several tokens where it was measured."""
    several = any(trial.scores.kl_tokens is not None for trial in trials)
    lines = [f"{'trial':>7}  {'refused':>11}  {'KL':>8}" + (f"  {'KL, tokens':>10}" if several else "")]
    for trial in trials:
        scores = trial.scores
        tokens = "" if scores.kl_tokens is None else f"{scores.kl_tokens:.4f}"
        count = f"{scores.refusals}/{scores.prompts}"
        line = f"{trial.number:>7}  {count:>11}  {scores.kl:>8.4f}" + (f"  {tokens:>10}" if several else "")
        lines.append(line.rstrip())
    return lines
