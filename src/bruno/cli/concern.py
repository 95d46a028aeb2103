"""`bruno concern`: report what you see, list what is open, say what it was. The same intents that a sentence makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bruno.intents import Intent

app = typer.Typer(rich_markup_mode=None)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="The emulated provider.")]
Words = Annotated[list[str], typer.Argument(help="Your own words.")]


@app.command()
def report(
    ctx: typer.Context,
    words: Words,
    *,
    run: Annotated[str | None, typer.Option("--run", help="Which run. Left out: the only one there is.")] = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """Say what you see: every source is asked and shown beside it. The second time the run is on hold."""
    from bruno.intents import ReportTrouble

    return _submit(ctx, ReportTrouble(words=" ".join(words), target=run), sandbox=sandbox, as_json=as_json)


@app.command("list")
def list_open(ctx: typer.Context, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """What was reported and is not resolved, with what the sources said."""
    from bruno.intents import ShowConcerns

    return _submit(ctx, ShowConcerns(), sandbox=sandbox, as_json=as_json)


@app.command()
def resolve(
    ctx: typer.Context,
    words: Words,
    *,
    number: Annotated[int | None, typer.Option("--number", help="Which concern, as listed.", min=1)] = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """Say what it was. Closes the concern and lifts its hold."""
    from bruno.intents import ResolveConcern

    return _submit(
        ctx, ResolveConcern(words=" ".join(words), number=number), sandbox=sandbox, as_json=as_json, acts=True
    )


def _submit(ctx: typer.Context, intent: Intent, *, sandbox: bool, as_json: bool, acts: bool = False) -> int:
    from bruno.cli.session import session
    from bruno.cli.show import Output
    from bruno.guard.permit import Origin

    flags = ctx.obj.with_sandbox(sandbox)
    if acts:
        flags.may_act("resolving a concern")
    with session(flags) as operator:
        reply = operator.submit(intent, origin=Origin.COMMAND_LINE)
        Output(as_json=as_json).reply(reply)
    return 1 if reply.kind == "answer" and reply.failed else 0
