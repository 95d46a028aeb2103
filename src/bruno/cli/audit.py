"""`bruno audit`: whether the record of acts is whole, and the record itself for keeping elsewhere. Reads; changes nothing.

Needs neither a provider nor a key: the record must be readable when everything else is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bruno.records import Records

app = typer.Typer(rich_markup_mode=None)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="The record of the emulated provider.")]


@app.command()
def verify(ctx: typer.Context, *, sandbox: Sandbox = False, as_json: AsJson = False) -> int:
    """Check that no entry was changed, removed or put in between. Exit code 1 when one was."""
    from bruno.cli.show import Output

    output = Output(as_json=as_json)
    with _records(ctx, sandbox=sandbox) as records:
        report = records.verify_audit()
        unsettled = len(records.acts(unsettled=True))
    if output.as_json:
        kind = {"kind": "audit", "ok": report.ok, "entries": report.entries, "problem": report.problem}
        output.json({**kind, "acts_with_unknown_outcome": unsettled})
        return 0 if report.ok else 1
    if not report.ok:
        output.line(f"✘ the record of acts does not hold: {report.problem}")
        return 1
    output.line(f"✔ {report.entries} entries, each follows the one before; nothing was changed or removed")
    if unsettled:
        acts = "one act has" if unsettled == 1 else f"{unsettled} acts have"
        output.line(f"  {acts} no known outcome yet: bruno resume asks the provider what became of it")
    return 0


@app.command()
def export(
    ctx: typer.Context,
    to: Annotated[Path | None, typer.Argument(help="The file to write; standard output without one.")] = None,
    *,
    sandbox: Sandbox = False,
) -> int:
    """Write every entry as one JSON line, with the hashes that chain them. An existing file is not overwritten."""
    from bruno.errors import InputError

    with _records(ctx, sandbox=sandbox) as records:
        if to is None:
            for line in records.audit_lines():
                typer.echo(line)
            return 0
        try:
            with to.open("x", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in records.audit_lines())
        except FileExistsError as error:
            raise InputError(f"{to} exists already", fix="Name another file") from error
        except OSError as error:
            raise InputError(f"{to} cannot be written ({error.strerror})", fix="Name another file") from error
    return 0


@contextmanager
def _records(ctx: typer.Context, *, sandbox: bool) -> Iterator[Records]:
    from bruno.cli.session import console_paths
    from bruno.errors import InputError
    from bruno.records import Records

    path = console_paths(sandbox=ctx.obj.with_sandbox(sandbox).sandbox).database
    if not path.exists():
        raise InputError(f"nothing is recorded yet: there is no {path}", fix="bruno audit --sandbox has its own record")
    records = Records(path, lambda: datetime.now(UTC))
    try:
        yield records
    finally:
        records.close()
