"""The commands: arguments in, one call of the service, a conclusion out. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bruno import __version__
from bruno.cli.boundary import EXIT_CODES
from bruno.cli.session import Flags, session
from bruno.errors import InputError

if TYPE_CHECKING:
    from bruno.intents import Intent

app = typer.Typer(
    rich_markup_mode=None,  # plain help: rich would cost more than everything else --help imports
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
)

Sandbox = Annotated[
    bool, typer.Option("--sandbox", help="The emulated provider on this machine: no account, no money.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Words = Annotated[list[str] | None, typer.Argument(help="What you want, in a sentence.")]
Target = Annotated[str | None, typer.Argument(help="Instance id, label or run name. Left out: the only one there is.")]
RunName = Annotated[str | None, typer.Argument(help="Run name or id. Left out: the only one there is.")]
NoFollow = Annotated[bool, typer.Option("--no-follow", help="Leave once the run is launched.")]


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    *,
    sandbox: Sandbox = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Show everything, act on nothing.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Settings file.", metavar="FILE")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> int:
    """Rent a GPU, reshape a language model's behaviour on it, bring the result home.

    Without a command the console opens. `bruno MODEL` is `bruno abliterate MODEL`.
    """
    if version:
        typer.echo(f"bruno {__version__}")
        raise typer.Exit(0)
    ctx.obj = Flags(sandbox=sandbox, readonly=readonly, config=config)
    if ctx.invoked_subcommand is None:
        from bruno.cli.console import console

        return console(ctx.obj)
    return 0


@app.command()
def do(
    ctx: typer.Context,
    words: Words = None,
    *,
    confirm: Annotated[str, typer.Option("--confirm", help="Carry out the plan with this id.", metavar="PLAN_ID")] = "",
    no_follow: NoFollow = False,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """Ask in words, confirm the plan, follow it. For example: bruno do "start demo on an H200"."""
    from bruno.cli.conclude import Conclusion
    from bruno.cli.show import Output
    from bruno.guard.permit import Origin

    flags: Flags = ctx.obj.with_sandbox(sandbox)
    sentence = " ".join(words or ())
    if not confirm:
        _said(sentence)
    with session(flags) as operator:
        end = Conclusion(operator, Output(as_json=as_json), readonly=flags.readonly, go_on=not no_follow)
        if not confirm:
            return end.of(operator.ask(sentence, origin=Origin.COMMAND_LINE))
        card = operator.saved_plan(confirm)
        if sentence and sentence != card.origin_words:
            raise InputError(f"plan {confirm[:12]} was made for {card.origin_words!r}", fix="Leave the sentence out")
        return end.by_plan_id(card, confirm)


@app.command()
def plan(ctx: typer.Context, words: Words = None, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Show what a sentence would do and cost. The plan is kept for `bruno do --confirm PLAN_ID`."""
    from bruno.cli.show import Output
    from bruno.errors import Denied, NotConfirmed
    from bruno.guard.decision import Verdict
    from bruno.guard.permit import Origin

    output, flags = Output(as_json=as_json), ctx.obj.with_sandbox(sandbox)
    sentence = _said(" ".join(words or ()))
    with session(flags) as operator:
        reply = operator.ask(sentence, origin=Origin.COMMAND_LINE)
        if reply.kind == "card" and reply.decision.verdict in (Verdict.ALLOW, Verdict.CONFIRM):
            operator.save_plan(reply)
        output.reply(reply)
        if reply.kind == "card" and reply.decision.verdict is Verdict.DENY:
            raise Denied("the guard denies this plan: " + "; ".join(reply.decision.reasons))
        if reply.kind == "ask":
            raise NotConfirmed("this has two meanings", fix="Say which one in the sentence itself")
        if reply.kind == "card" and not as_json:
            where = " --sandbox" if flags.sandbox else ""
            output.line(f"bruno do --confirm {reply.plan.plan_id}{where}")
        return 1 if reply.kind == "answer" and reply.failed else 0


def _said(sentence: str) -> str:
    if not sentence.strip():
        raise InputError("nothing was asked for", fix='For example: bruno do "start demo on an H200" --sandbox')
    return sentence


def _submit(ctx: typer.Context, intent: Intent, *, sandbox: bool, as_json: bool = False, acts: str = "") -> int:
    """What every command with a fixed meaning does: its intent, through the same service and the same conclusion."""
    from bruno.cli.conclude import Conclusion
    from bruno.cli.show import Output
    from bruno.guard.permit import Origin

    flags: Flags = ctx.obj.with_sandbox(sandbox)
    if acts:
        flags.may_act(acts)
    with session(flags) as operator:
        reply = operator.submit(intent, origin=Origin.COMMAND_LINE)
        return Conclusion(operator, Output(as_json=as_json), readonly=flags.readonly).of(reply)


@app.command()
def progress(
    ctx: typer.Context,
    run: RunName = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Say every change until the run ends.")] = False,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """Trials, raw refusals, KL, time and money. Said once, or with --watch at every change."""
    from bruno.cli.watch import show_progress

    return show_progress(ctx.obj.with_sandbox(sandbox), run, watch=watch, as_json=as_json)


@app.command()
def runs(ctx: typer.Context, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Every run there is a record of."""
    from bruno.cli.show import Output

    output = Output(as_json=as_json)
    with session(ctx.obj.with_sandbox(sandbox)) as operator:
        found = operator.runs()
        if as_json:
            output.json({"kind": "runs", "runs": [each.model_dump(mode="json") for each in found]})
        else:
            output.runs(found)
    return 0


@app.command()
def instances(ctx: typer.Context, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """The provider's list, read now. Exit code 5 when it cannot be read."""
    from bruno.cli.show import Output
    from bruno.errors import Unreachable
    from bruno.operator.views import Instances

    with session(ctx.obj.with_sandbox(sandbox)) as operator:
        view = operator.instances(fresh=True)
        Output(as_json=as_json).reply(Instances(view=view))
    return 0 if view.known else Unreachable.exit_code


@app.command()
def offers(
    ctx: typer.Context,
    gpu: Annotated[str | None, typer.Argument(help="A GPU's name.")] = None,
    *,
    count: Annotated[int, typer.Option(help="GPUs on the machine.", min=1, max=16)] = 1,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """What can be rented now. The price of the disk is in it."""
    from bruno.intents import ShowOffers

    return _submit(ctx, ShowOffers(gpu=gpu, count=count), sandbox=sandbox, as_json=as_json)


@app.command()
def fit(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's short name, hub id or folder.")],
    *,
    gpu: Annotated[str | None, typer.Option(help="This GPU only.")] = None,
    count: Annotated[int, typer.Option(help="GPUs on the machine.", min=1, max=16)] = 1,
    per_hour: Annotated[float | None, typer.Option(help="Price for the cost, $/h.", min=0)] = None,
    as_json: AsJson = False,
) -> int:
    """What a model needs: memory on each GPU, disk, time. Reads its metadata, never its weights."""
    from bruno.cli.fit import show_fit

    return show_fit(ctx.obj, model, gpu=gpu, count=count, per_hour=per_hour, as_json=as_json)


@app.command()
def stop(ctx: typer.Context, target: Target = None, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Stop one instance. Shows which one and what dies with it, then asks."""
    from bruno.intents import StopInstance

    return _submit(ctx, StopInstance(target=target), sandbox=sandbox, as_json=as_json, acts="stop")


@app.command()
def destroy(ctx: typer.Context, target: Target = None, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Delete one instance and its disk. Cannot be undone, and asks for more than yes."""
    from bruno.intents import DestroyInstance

    return _submit(ctx, DestroyInstance(target=target), sandbox=sandbox, as_json=as_json, acts="destroy")


@app.command()
def fetch(ctx: typer.Context, run: RunName = None, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Copy a run's saved model home. Goes on where an earlier copy stopped."""
    from bruno.intents import FetchModel

    return _submit(ctx, FetchModel(target=run), sandbox=sandbox, as_json=as_json, acts="fetch")


@app.command()
def resume(ctx: typer.Context, run: RunName = None, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Take up a run and follow it. It goes on from wherever its records leave it."""
    from bruno.intents import ResumeRun

    return _submit(ctx, ResumeRun(target=run), sandbox=sandbox, as_json=as_json, acts="resume")


@app.command("exec")
def run_line(
    ctx: typer.Context,
    command: Annotated[str, typer.Argument(help="One shell line, quoted.")],
    *,
    on: Annotated[str | None, typer.Option("--on", help="Instance id, label or run name.", metavar="INSTANCE")] = None,
    seconds: Annotated[float | None, typer.Option("--timeout", help="End it after so many seconds.", min=0.1)] = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> int:
    """Run a shell line on an instance. The guard says whether it runs, asks or refuses. The exit code is the line's own."""
    from bruno.cli.execute import execute

    return execute(ctx.obj.with_sandbox(sandbox), command, on=on, seconds=seconds, as_json=as_json)


@app.command()
def costs(ctx: typer.Context, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """What was spent, and what is being spent."""
    from bruno.intents import ShowCosts

    return _submit(ctx, ShowCosts(), sandbox=sandbox, as_json=as_json)


@app.command()
def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's folder, a run's name, a hub id or demo.")],
    *,
    beside: Annotated[str | None, typer.Option(help="Answer with this model too.", metavar="OTHER")] = None,
    sandbox: Sandbox = False,
) -> int:
    """Talk to a local model in the terminal."""
    from bruno.cli import engine

    if beside is not None or "/" in model or Path(model).is_dir():
        return engine.chat(model, beside)
    from bruno.intents import ChatWith

    return _submit(ctx, ChatWith(model=model), sandbox=sandbox)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A run's folder (its --out), or a model that bruno saved.")],
    *,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw its layers: FILE.png or FILE.html.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """What a run used, skipped and why, and what it found."""
    from bruno.cli.explain import explain as tell

    return tell(folder, plot=plot, as_json=as_json)


TrustCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model repository's own Python code run.")]


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run's folder on this machine (its --out).")],
    *,
    trial: Annotated[
        list[int] | None, typer.Option("--trial", help="A trial's number. Say it as often as you like.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Folder name of the saved model.")] = "",
    adapter: Annotated[bool, typer.Option("--adapter", help="Also write a PEFT adapter.")] = False,
    trust_remote_code: TrustCode = False,
) -> int:
    """Save trials of a run by number, from one loading of the model."""
    from bruno.cli.export import export as save

    return save(folder, trial or (), name=name, adapter=adapter, trust_remote_code=trust_remote_code)


@app.command()
def reproduce(
    file: Annotated[Path, typer.Argument(help="A reproduce.toml, or a saved model's folder.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="An empty folder to work in.")] = Path("reproduced"),
    search: Annotated[bool, typer.Option("--search", help="Repeat the whole search too.")] = False,
    model: Annotated[str, typer.Option("--model", help="Where the base model lies here.")] = "",
    behaviour: Annotated[str, typer.Option("--behaviour", help="Where the behaviour's file lies here.")] = "",
    trust_remote_code: TrustCode = False,
) -> int:
    """Make a saved model again and compare. Exit code 0 only when it is the same."""
    from bruno.cli.reproduce import reproduce as make

    return make(file, out=out, search=search, model=model, behaviour=behaviour, trust_remote_code=trust_remote_code)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def abliterate(ctx: typer.Context) -> int:
    """Search and save on this machine. For example: bruno abliterate MODEL --trials 60."""
    from bruno.cli import engine

    if {"--help", "-h"} & set(ctx.args):
        typer.echo(engine.settings_help())
        return 0
    config = ("--config", str(ctx.obj.config)) if ctx.obj.config else ()
    return engine.abliterate([*config, *ctx.args])


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def worker(ctx: typer.Context) -> int:
    """Join a search and score its trials. For example: bruno worker --study NAME (storage: BRUNO_SEARCH__STORAGE)."""
    from bruno.cli import engine

    if {"--help", "-h"} & set(ctx.args):
        typer.echo(engine.worker_help())
        return 0
    config = ("--config", str(ctx.obj.config)) if ctx.obj.config else ()
    return engine.worker([*config, *ctx.args])


def _add_groups() -> None:
    from bruno.cli import audit, concern, config, guard, sandbox

    app.add_typer(config.app, name="config", help="The settings in force.")
    app.add_typer(sandbox.app, name="sandbox", help="The emulated provider.")
    app.add_typer(concern.app, name="concern", help="What you reported, what is on hold, and lifting it.")
    app.add_typer(audit.app, name="audit", help="The record of acts.")
    if guard.available():
        app.add_typer(guard.app, name="guard", help="What the guard says to a command.")


_add_groups()
