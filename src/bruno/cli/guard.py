"""`bruno guard`: what the guard makes of a shell line, whether its own examples hold, which rules there are. Runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from bruno.errors import InputError

if TYPE_CHECKING:
    from bruno.guard.command import CommandVerdict
    from bruno.guard.command_rules import CommandRules

app = typer.Typer(rich_markup_mode=None)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def available() -> bool:
    """Whether there is anything below `bruno guard`."""
    return bool(app.registered_commands)


def _git_remote(ctx: typer.Context) -> str:
    from bruno.cli.session import settings_in_force

    return settings_in_force(ctx.obj).guard.git_remote


def _rules(ctx: typer.Context) -> CommandRules:
    from bruno.cli.session import settings_in_force
    from bruno.guard.command_rules import load_command_rules
    from bruno.settings.paths import own_guardrails

    return load_command_rules(own_guardrails(settings_in_force(ctx.obj)))


@app.command()
def check(
    ctx: typer.Context,
    command: Annotated[str, typer.Argument(help="A shell line, quoted; `-` reads one a line from standard input.")],
    *,
    as_json: AsJson = False,
) -> int:
    """Explain the verdict on a command: allow, ask, typed_yes or refuse. Exit code 0 for allow, 4 to ask, 3 for refuse."""
    from bruno.cli.show import Output
    from bruno.guard.command import check as verdict_of
    from bruno.guard.shapes import Level

    if not command.strip():
        raise InputError("no shell line was given", fix="For example: bruno guard check 'rm -rf build'")
    rules, remote, output = _rules(ctx), _git_remote(ctx), Output(as_json=as_json or command == "-")
    if command == "-":
        for line in sys.stdin:
            output.json(verdict_of(line.rstrip("\n"), rules, git_remote=remote).as_dict())
        return 0
    verdict = verdict_of(command, rules, git_remote=remote)
    if output.as_json:
        output.json(verdict.as_dict())
    else:
        _explain(verdict, output.line)
    return {Level.allow: 0, Level.refuse: 3}.get(verdict.level, 4)


@app.command("test")
def run_examples(ctx: typer.Context) -> int:
    """Run every example of every rule file."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output
    from bruno.guard.rules import load_rules
    from bruno.settings.paths import own_guardrails

    commands = _rules(ctx)
    problems = [*commands.check_all(), *commands.problems]
    problems += load_rules(own_guardrails(settings_in_force(ctx.obj))).problems
    output = Output()
    for problem in dict.fromkeys(problems):
        output.line(f"✘ {problem}")
    output.line(f"{len(commands.names())} programs checked, {len(dict.fromkeys(problems))} problems")
    return 1 if problems else 0


@app.command("rules")
def list_rules(
    ctx: typer.Context,
    program: Annotated[str, typer.Argument(help="Show what is known of this program, with its examples.")] = "",
) -> int:
    """List the programs with rules, the budgets, the disk floors and the ambiguous phrases in force."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output
    from bruno.guard.rules import load_rules
    from bruno.settings.paths import own_guardrails

    if program:
        return _about(_rules(ctx), program)
    rules = load_rules(own_guardrails(settings_in_force(ctx.obj)))
    output = Output()
    output.line("budgets: " + ", ".join(f"{name} {value:g}" for name, value in rules.budgets.model_dump().items()))
    floors = (f"{floor.name} {floor.minimum_gb:g}" for floor in rules.disk.floors)
    output.line(f"disk: {rules.disk.copies:g} x model + {rules.disk.extra_gb:g} GB; floors in GB: {', '.join(floors)}")
    output.line("phrases: " + ", ".join(rule.name for rule in rules.phrases.phrase))
    output.line("programs: " + ", ".join(sorted(_rules(ctx).names())))
    for problem in rules.problems:
        output.line(f"✘ {problem}")
    return 1 if rules.broken else 0


@app.command()
def bench(ctx: typer.Context, *, as_json: AsJson = False) -> int:
    """Measure the guard on its own examples and on lines made to take long: verdicts, and CPU milliseconds of each."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output
    from bruno.guard.bench import bench as measure
    from bruno.guard.rules import load_rules
    from bruno.settings.paths import own_guardrails

    rules = load_rules(own_guardrails(settings_in_force(ctx.obj)))
    figures = measure(_rules(ctx), rules)
    output = Output(as_json=as_json)
    if as_json:
        output.json(figures)
    else:
        for name, value in figures.items():
            many = isinstance(value, dict)
            output.line(f"{name}: {', '.join(f'{key} {each}' for key, each in value.items()) if many else value}")
    return 1 if figures["failing_examples"] or figures["bombs_allowed"] else 0


def _about(rules: CommandRules, name: str) -> int:
    """All that the files say of one program: what it is allowed, what is warned of, what neither covers."""
    from bruno.cli.show import Output
    from bruno.guard.sanitise import safe_line

    known, line = rules.programs.get(name), Output().line
    if known is None:
        raise InputError(
            f"no rule file speaks of {safe_line(name, 60)}", fix="It is asked about. Programs: bruno guard rules"
        )
    line(f"{rules.main[name]}{' (also ' + ', '.join(known.also) + ')' if known.also else ''}")
    for shape in known.allow:
        only = f" ({', '.join(shape.only)} alone)" if shape.only else ""
        line(f"  allow      such as {'; '.join(shape.match)}{only}")
    for rule in known.rule:
        line(f"  {rule.verdict:<10} {rule.name}: {rule.reason}; such as {'; '.join(rule.match)}")
    for wrapper in known.wrapper:
        line(f"  {wrapper.own:<10} {' or '.join(wrapper.sub) or 'as it is'}: at least as strict as what it runs")
    line(f"  {known.floor:<10} all else")
    return 0


def _explain(verdict: CommandVerdict, line: Callable[[str], None]) -> None:
    line(f"{verdict.verdict}: {verdict.command}")
    for piece in verdict.pieces:
        where = f" ({piece.where})" if piece.where else ""
        rule = f" [{piece.rule}]" if piece.rule else ""
        line(f"  {piece.level.name:<9} {piece.command}{where}{rule}")
        if piece.reason:
            line(f"            {piece.reason}")
