"""Shapes of commands: what a guardrail file says about a program, and how an argument list is held against it. Pure.

A shape that allows is a list of what is known to be harmless; anything else about the arguments takes the command off the list.
A rule that warns is the other way round: it fires when its words or flags are found anywhere they could count.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import cached_property, lru_cache

from pydantic import BaseModel, ConfigDict, Field

from bruno.guard.inline import inline_problem
from bruno.guard.words import UNKNOWN, Word


class Level(IntEnum):
    """Verdict on a command, strictest last."""

    allow = 0
    ask = 1
    typed_yes = 2
    refuse = 3


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Allow(_Entry):
    """Arguments that are known to read and nothing else."""

    only: tuple[str, ...] = ()
    """Names of the program that it holds for; empty means all. `dropdb status` drops what `alembic status` shows."""
    sub: tuple[str, ...] = ()
    """Subcommands it speaks of ("log", "remote show"); empty means none is looked for."""
    flags: tuple[str, ...] | str = ()
    """Flags without a value: "-l", "--all", "--color=" (an optional value), "-N" (any number). "any": every flag is harmless."""
    values: tuple[str, ...] = ()
    """Flags that take a value."""
    discards: tuple[str, ...] = ()
    """Flags whose value must be /dev/null."""
    needs: tuple[str, ...] = ()
    """One of these flags must be there, as written."""
    args: tuple[str, ...] | str = "any"
    """"any", "none", or expressions of which each argument must fully match one."""
    line: str = ""
    """An expression that all arguments that are no flags, joined by blanks, must fully match."""
    min_args: int = 0
    max_args: int = 1000
    unknown: bool = False
    """Arguments that only the run decides are harmless too, even if they turn out to be flags."""
    code: str = ""
    """The first argument (or each value of `code_values`) is code that must prove harmless: sql, sqlite, awk, sed, python."""
    code_values: tuple[str, ...] = ()
    single_dash: bool = False
    """For this shape long options have one dash."""
    code_after: int = 0
    """How many arguments come before the code."""
    match: tuple[str, ...] = Field(min_length=1)
    no_match: tuple[str, ...] = ()

    @cached_property
    def subs(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(sub.split()) for sub in self.sub)

    @cached_property
    def flag_set(self) -> frozenset[str]:
        return frozenset(() if isinstance(self.flags, str) else self.flags)

    @cached_property
    def value_set(self) -> frozenset[str]:
        return frozenset(self.values) | frozenset(self.code_values) | frozenset(self.discards)


class Rule(_Entry):
    """What makes a command worse than unknown."""

    name: str
    verdict: str = Field(pattern="^(ask|typed_yes|refuse)$")
    reason: str = Field(min_length=5)
    """What would happen; `{args}` are its arguments."""
    sub: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    """Any of these flags; "-r" is found in "-rf", "--force" in "--forc" and "--force=x"."""
    every: tuple[str, ...] = ()
    """All of these flags."""
    arg: tuple[str, ...] = ()
    """Any argument in which one of these expressions is found."""
    roots: bool = False
    """Some argument is the root of a tree that must not be lost (/, ~, /etc), or may be that when a variable is empty."""
    without: tuple[str, ...] = ()
    """Flags with which it does not fire (a dry run)."""
    match: tuple[str, ...] = Field(min_length=1)
    no_match: tuple[str, ...] = ()

    @property
    def level(self) -> Level:
        return Level[self.verdict]

    @cached_property
    def subs(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(sub.split()) for sub in self.sub)


class Wrapper(_Entry):
    """A program that runs the command in its arguments."""

    kind: str = "prefix"
    """prefix: the words after its own; others are read by `wrappers`."""
    sub: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    skip: int = 0
    """Arguments of its own before the command."""
    loose: bool = False
    """Where the command begins varies: later words are read as one too, and may raise the verdict."""
    own: str = Field(default="allow", pattern="^(allow|ask|typed_yes)$")
    """The least verdict, however harmless the command is."""
    reason: str = ""


class Program(_Entry):
    """All that is known of one program."""

    also: tuple[str, ...] = ()
    """Other names of it."""
    says: str = ""
    """What it does, for people, when no rule says it better."""
    floor: str = Field(default="ask", pattern="^(ask|typed_yes|refuse)$")
    """Verdict when neither an allowed shape nor a rule fits."""
    shows: bool = True
    """It prints what it reads; a program that only uses a key file shows no secret."""
    single_dash: bool = False
    """Long options have one dash (find, java): `-rf` is one option."""
    globals: tuple[str, ...] = ()
    """Harmless flags that may stand before a subcommand."""
    global_values: tuple[str, ...] = ()
    """The same, with a value."""
    allow: tuple[Allow, ...] = ()
    rule: tuple[Rule, ...] = ()
    wrapper: tuple[Wrapper, ...] = ()


def allows(shape: Allow, program: Program, words: list[Word], name: str) -> bool:
    """Whether these arguments of the program, called by `name`, are surely what the shape describes."""
    if shape.only and name not in shape.only:
        return False
    taken = _taken(shape, program, words)
    if taken is None or (shape.needs and not any(word.text.split("=")[0] in shape.needs for word in words)):
        return False
    positional, code = taken
    if shape.subs:
        names = tuple(word.text for word in positional[:3])
        fitting = max((len(sub) for sub in shape.subs if names[: len(sub)] == sub), default=0)
        if not fitting:
            return False
        positional = positional[fitting:]
    if shape.code and not code:
        if len(positional) <= shape.code_after:
            return False
        code = [positional.pop(shape.code_after)]
    if any(not word.known or inline_problem(shape.code, word.text) for word in code):
        return False
    return shape.min_args <= len(positional) <= shape.max_args and _fitting(shape, positional)


def _fitting(shape: Allow, positional: list[Word]) -> bool:
    """Whether the arguments that are no flags are what the shape wants."""
    if shape.line and not _regex(shape.line).fullmatch(" ".join(word.text for word in positional)):
        return False
    if isinstance(shape.args, str):
        return shape.args == "any" or not positional
    return all(any(_regex(pattern).fullmatch(word.text) for pattern in shape.args) for word in positional)


def _taken(shape: Allow, program: Program, words: list[Word]) -> tuple[list[Word], list[Word]] | None:
    """Positional arguments and code values, when every flag is one the shape knows; else None."""
    positional: list[Word] = []
    code: list[Word] = []
    rest = iter(words)
    ended = False
    for word in rest:
        text = word.text
        if not word.known and (word.splits or (word.may_be_flag and not ended)):
            if not shape.unknown:
                return None
            positional.append(word)
        elif ended or len(text) < 2 or (text[0] != "-" and not word.may_be_flag):
            positional.append(word)
        elif text == "--":
            ended = True
        elif text[0] != "-":  # a wildcard that may find a file named like a flag
            if shape.flags != "any":
                return None
            positional.append(word)
        else:
            needs = _flag(shape, program, text)
            if needs is None:
                return None
            name, attached = needs
            if name in shape.code_values:
                value = Word(attached) if attached is not None else next(rest, None)
                if value is None:
                    return None
                code.append(value)
            elif name:
                value = Word(attached) if attached is not None else next(rest, None)
                if value is None or value.splits or (name in shape.discards and value.text != "/dev/null"):
                    return None
    return positional, code


def _flag(shape: Allow, program: Program, text: str) -> tuple[str, str | None] | None:
    """None: not a known flag. ("", None): complete. (name, value or None): a flag with a value, attached or to follow."""
    values = shape.value_set
    if text in values or text in program.global_values:
        return text, None
    if shape.flags == "any" or text in shape.flag_set or text in program.globals:
        return "", None
    name, equals, value = text.partition("=")
    if text.startswith("--") or program.single_dash or shape.single_dash:
        if equals and (name in values or name in program.global_values):
            return name, value
        return ("", None) if equals and name + "=" in shape.flag_set else None
    if text[1:].isdigit():
        return ("", None) if "-N" in shape.flag_set else None
    for at, letter in enumerate(text[1:], 1):
        if "-" + letter in values:
            return "-" + letter, text[at + 1 :] or None
        if "-" + letter not in shape.flag_set:
            return None
    return "", None


def fires(rule: Rule, program: Program, words: list[Word], at_risk: bool) -> bool:
    """Whether a warning rule applies to these arguments. `at_risk`: one of them is a root that must not be lost."""
    if rule.subs and not _has_sub(rule.subs, program, words):
        return False
    flags = [word.text for word in words if word.text.startswith("-")]
    if rule.without and any(
        _carries(flag, one, program.single_dash, exact=True) for flag in flags for one in rule.without
    ):
        return False
    if rule.has and not any(_carries(flag, one, program.single_dash) for flag in flags for one in rule.has):
        return False
    if not all(any(_carries(flag, one, program.single_dash) for flag in flags) for one in rule.every):
        return False
    if rule.arg and not any(_regex(pattern).search(word.text) for pattern in rule.arg for word in words):
        return False
    return at_risk or not rule.roots


def _has_sub(subs: tuple[tuple[str, ...], ...], program: Program, words: list[Word]) -> bool:
    """Subcommands by position; after a flag that is not known they are looked for anywhere."""
    names: list[str] = []
    strange = False
    rest = iter(words)
    for word in rest:
        if word.text.startswith("-") and len(word.text) > 1:
            if word.text in program.global_values:
                next(rest, None)
            elif (
                not names and word.text not in program.globals and word.text.split("=")[0] not in program.global_values
            ):
                strange = True
        else:
            names.append(word.text)
    for sub in subs:
        size = len(sub)
        if any(_same(names[start : start + size], sub) for start in range(len(names) if strange else 1)):
            return True
    return False


def _same(names: list[str], sub: tuple[str, ...]) -> bool:
    return len(names) == len(sub) and all(
        name == wanted or UNKNOWN in name for name, wanted in zip(names, sub, strict=True)
    )


def _carries(flag: str, wanted: str, single_dash: bool, exact: bool = False) -> bool:
    """Whether `flag` as written may be (exact: surely is) the wanted one."""
    if flag == wanted:
        return True
    name = flag.split("=", 1)[0]
    if wanted.startswith("--"):
        if exact:
            return name == wanted
        return name == wanted or (len(name) > 3 and name.startswith("--") and wanted.startswith(name))
    if single_dash or len(wanted) > 2:
        return name == wanted
    return not flag.startswith("--") and wanted[1] in (flag[1:] if not exact else flag[1:].rstrip("="))


@lru_cache(maxsize=2048)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)
