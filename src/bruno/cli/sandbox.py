"""`bruno sandbox`: the emulated provider by hand. `--sandbox` on any command starts it by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bruno.sandbox.info import SandboxInfo
    from bruno.settings.console import Settings

app = typer.Typer(rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def running_sandbox(settings: Settings) -> SandboxInfo:
    """The sandbox of this state folder, started if it does not run."""
    from bruno.sandbox import ensure_running
    from bruno.settings.paths import paths

    return ensure_running(paths().ensure().home, idle_minutes=settings.sandbox.idle_minutes)


@app.command()
def serve(ctx: typer.Context) -> int:
    """Serve it in the foreground until Ctrl-C, with the pace of the settings."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output
    from bruno.sandbox import serve as serve_sandbox
    from bruno.sandbox.launch import state_of
    from bruno.settings.paths import paths

    pace = settings_in_force(ctx.obj).sandbox.pace
    state = state_of(paths().ensure().home)
    serve_sandbox(
        state, speed=pace, ready=lambda info: Output().line(f"serving {info.state} at {info.url}; Ctrl-C ends it")
    )
    return 0


@app.command()
def start(ctx: typer.Context) -> int:
    """Start it as a process of its own, or find it running."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output

    info = running_sandbox(settings_in_force(ctx.obj))
    Output().line(f"sandbox at {info.url}, pid {info.pid}")
    return 0


@app.command()
def stop(
    *,
    stop_instances: Annotated[
        bool, typer.Option("--stop-instances", help="End what runs on its instances too.")
    ] = False,
) -> int:
    """End it; what runs on its instances goes on unless told otherwise, and the next start finds it."""
    from bruno.cli.show import Output
    from bruno.sandbox import stop as stop_sandbox
    from bruno.settings.paths import paths

    left = stop_sandbox(paths().home, stop_instances=stop_instances)
    Output().line(
        "no sandbox was running" if left is None else f"sandbox ended; {_instances(left, ended=stop_instances)}"
    )
    return 0


@app.command()
def status(*, as_json: AsJson = False) -> int:
    """Whether it runs, where, and what is in it."""
    from bruno.cli.show import Output
    from bruno.sandbox import SandboxControl, running
    from bruno.settings.paths import paths

    info = running(paths().home)
    output = Output(as_json=as_json)
    overview = SandboxControl(info.url, info.admin_token).overview() if info else {}
    if as_json:
        # The key and the token stay in the 0600 port file.
        about = info.model_dump(mode="json", exclude={"api_key", "admin_token"}) if info else None
        output.json({"kind": "sandbox", "running": info is not None, "server": about, "overview": overview})
    elif info is None:
        output.line("no sandbox is running")
    else:
        output.line(
            f"sandbox at {info.url}, pid {info.pid}, state in {info.state}; {_instances(overview, ended=False)}"
        )
    return 0


def _instances(overview: dict[str, Any], *, ended: bool) -> str:
    found = overview.get("instances") or []
    if not found:
        return "no instance in it"
    names = ", ".join(
        f"{each.get('id')} ({each.get('label') or 'no label'}, {each.get('stage', 'unknown')})" for each in found
    )
    return f"{len(found)} instance{'s' if len(found) > 1 else ''} {'ended' if ended else 'in it'}: {names}"
