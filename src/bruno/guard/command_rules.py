"""The rules for raw commands: guardrails/commands/*.toml and places.toml, each program checked against its own examples.

Files are read once, on the first command; a program's examples are run the first time it is met, so that starting bruno costs
nothing. A program whose file or examples are wrong is held to the strictest verdict short of refusing, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bruno.guard.places import PlaceFile, Places
from bruno.guard.rules import RuleFileError, is_shipped, read_toml, shipped_folder, validated
from bruno.guard.shapes import Program
from bruno.guard.wrappers import KINDS


@dataclass
class CommandRules:
    """Programs by name, in force after tightening."""

    programs: dict[str, Program] = field(default_factory=dict)
    main: dict[str, str] = field(default_factory=dict)
    """Each name's main name."""
    places: Places = field(default_factory=lambda: Places.of(PlaceFile()))
    problems: list[str] = field(default_factory=list)
    broken: bool = False
    """A whole file could not be used: no command is allowed without a question."""
    suspect: dict[str, str] = field(default_factory=dict)
    """Programs whose examples do not hold, with the first that fails."""
    checked: set[str] = field(default_factory=set)

    def find(self, name: str) -> Program | None:
        """The program's entry, its examples checked on first use."""
        program = self.programs.get(name)
        if program is not None and name not in self.checked and not self.broken:
            main = self.main[name]
            self.checked.update((main, *program.also))
            for problem in example_problems(main, program, self):
                self.suspect[main] = problem
                self.problems.append(problem)
                break
        return program

    def check_all(self) -> list[str]:
        """Run every example of every program; what does not hold, in words."""
        self.checked.update(self.programs)
        self.suspect.clear()
        broken, self.broken = self.broken, False  # else every example would say the one thing that is wrong
        try:
            return [
                problem
                for name in sorted(self.names())
                for problem in example_problems(name, self.programs[name], self)
            ]
        finally:
            self.broken = broken

    def names(self) -> list[str]:
        """Programs by their main name."""
        return [name for name in self.programs if self.main[name] == name]


@lru_cache(maxsize=1)
def shipped_commands() -> CommandRules:
    """The shipped rules alone, read once per process."""
    return load_command_rules()


def load_command_rules(folders: Sequence[Path] = ()) -> CommandRules:
    """The shipped rules, with the warning rules and places that each folder adds. Never raises for a wrong file."""
    rules = CommandRules()
    places: list[PlaceFile] = []
    try:
        home = shipped_folder()
    except RuleFileError as error:
        rules.problems.append(str(error))
        rules.broken = True
    else:
        _load_folder(rules, places, home, own=False)
    for folder in folders:
        _load_folder(rules, places, folder, own=True)
    try:
        rules.places = Places.of(*(places or [PlaceFile()]))
    except re.error as error:
        rules.problems.append(f"places.toml: not a regular expression: {error}")
        rules.broken = True
    return rules


def _load_folder(rules: CommandRules, places: list[PlaceFile], folder: Path, own: bool) -> None:
    """Read a folder file by file: one that is wrong is named and takes no other along. `own`: it may only tighten."""
    if not own or ((folder / "places.toml").is_file() and not is_shipped(folder / "places.toml")):
        try:
            places.append(validated(folder / "places.toml", PlaceFile))
        except RuleFileError as error:
            rules.problems.append(str(error))
            rules.broken = True
    for path in sorted((folder / "commands").glob("*.toml")):
        try:
            if own and is_shipped(path):
                continue
            if own:
                _tighten(rules, path)
            else:
                for name, program in _programs(path).items():
                    _register(rules, name, program, path)
        except RuleFileError as error:
            rules.problems.append(str(error))
            rules.broken = True


def _programs(path: Path) -> dict[str, Program]:
    programs = {}
    for name, table in read_toml(path).items():
        programs[name] = _program(path, name, table)
    return programs


def _program(path: Path, name: str, table: Any) -> Program:
    try:
        program = Program.model_validate(table)
        for pattern in [one for rule in program.rule for one in rule.arg] + [
            one for shape in program.allow if not isinstance(shape.args, str) for one in shape.args
        ]:
            re.compile(pattern)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (name, *first["loc"]))
        raise RuleFileError(f"guardrail file {path}: {place}: {first['msg']}") from error
    except re.error as error:
        raise RuleFileError(f"guardrail file {path}: {name}: not a regular expression: {error}") from error
    for shape in program.allow:
        for value in (shape.flags, shape.args):
            if isinstance(value, str) and value not in ("any", "none"):
                raise RuleFileError(f'guardrail file {path}: {name}: {value!r} is neither a list nor "any" nor "none"')
    for shape in program.allow:
        if strangers := set(shape.only) - {name, *program.also}:
            raise RuleFileError(f"guardrail file {path}: {name}: {sorted(strangers)[0]} is no name of it")
    if unknown := {wrapper.kind for wrapper in program.wrapper} - KINDS:
        raise RuleFileError(f"guardrail file {path}: {name}: no such kind of wrapper: {sorted(unknown)[0]}")
    return program


def _register(rules: CommandRules, name: str, program: Program, path: Path) -> None:
    for one in (name, *program.also):
        if one in rules.programs:
            raise RuleFileError(f"guardrail file {path}: {one} is described twice")
        rules.programs[one] = program
        rules.main[one] = name


def _tighten(rules: CommandRules, path: Path) -> None:
    """Add a user's warning rules. Shapes that allow, wrappers and lower floors would loosen, and are refused."""
    for name, added in _programs(path).items():
        given = added.model_fields_set
        if given - {"rule", "floor", "says"} or any(rule.without for rule in added.rule):
            raise RuleFileError(
                f"guardrail file {path}: {name}: a file of your own may add rules and raise the floor, nothing else"
            )
        known = rules.programs.get(name, Program())
        order = ("ask", "typed_yes", "refuse")
        floor = max(known.floor, added.floor, key=order.index)
        merged = known.model_copy(
            update={"rule": known.rule + added.rule, "floor": floor, "says": known.says or added.says}
        )
        for one in (name, *known.also):
            rules.programs[one] = merged
            rules.main.setdefault(one, name)
            rules.checked.discard(one)


def example_problems(name: str, program: Program, rules: CommandRules) -> Iterator[str]:
    """Examples of the program's shapes and rules that do not hold."""
    from bruno.guard.command import check
    from bruno.guard.shapes import Level

    for shape in program.allow:
        for example in shape.match:
            if check(example, rules).level is not Level.allow:
                yield f"{name}: {example!r} should be allowed: {'; '.join(check(example, rules).reasons)}"
        for example in shape.no_match:
            if check(example, rules).level is Level.allow:
                yield f"{name}: {example!r} should not be allowed"
    for rule in program.rule:
        wanted = f"{name}/{rule.name}"
        for example in rule.match:
            verdict = check(example, rules)
            if wanted not in verdict.rules or verdict.level < rule.level:
                yield f"{wanted}: {example!r} should make it fire, got {', '.join(verdict.rules) or 'nothing'}"
        for example in rule.no_match:
            if wanted in check(example, rules).rules:
                yield f"{wanted}: {example!r} should not make it fire"
