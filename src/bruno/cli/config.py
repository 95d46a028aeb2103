"""`bruno config`: the settings in force, the defaults with their documentation, where the file is."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def show(
    ctx: typer.Context,
    *,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="The defaults instead, as a commented config.toml.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """The settings in force: command line, environment, file and defaults merged."""
    from bruno.cli.session import settings_in_force
    from bruno.cli.show import Output
    from bruno.settings.console import Settings
    from bruno.settings.render import HEADER, IN_FORCE, document

    settings = Settings() if defaults else settings_in_force(ctx.obj)
    output = Output(as_json=as_json)
    if as_json:
        output.json(settings.model_dump(mode="json"))
    else:
        output.line(document(settings, header=HEADER if defaults else IN_FORCE).rstrip("\n"))
    return 0


@app.command()
def path(ctx: typer.Context) -> int:
    """The config file in force, or where one would be read from; then the folder with everything bruno keeps."""
    from bruno.cli.session import console_paths
    from bruno.cli.show import Output
    from bruno.settings.load import find_config
    from bruno.settings.paths import paths

    found, output = find_config(ctx.obj.config, os.environ), Output()
    output.line(str(found) if found else f"no config file; one would be read from ./config.toml or {paths().config}")
    output.line(f"state: {console_paths(sandbox=ctx.obj.sandbox).home}")
    return 0
