"""The one error boundary of the command line: what went wrong in one line on stderr, and an exit code that means something."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime

import typer

from bruno import __version__
from bruno.errors import BrunoError, InputError, machine_problem

INTERRUPTED = 130
BROKEN_PIPE = 141
EXIT_CODES = """\
Exit codes:

\b
  0    done
  1    failed, or an error inside bruno (the log file is named)
  2    something given cannot be used: unknown name, value, file, or no terminal
  3    denied by the guard
  4    not confirmed, or two meanings and nobody to ask: nothing was done
  5    provider or host did not answer: its state is unknown
  6    a run ended without its result
  130  interrupted: what is left running was said
  exec ends with the shell line's own code (124: it took too long)
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Parse, dispatch and run one command line; never raises, never shows a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:  # as the option does, without pydantic, which typer imports to convert any option
        typer.echo(f"bruno {__version__}")
        return 0
    try:
        from bruno.cli.app import app
        from bruno.cli.routing import route

        code = app(route(arguments), prog_name="bruno", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrunoError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; what Python still holds for it must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the boundary: everything else is a defect, and is written down
        problem = machine_problem(error)
        if problem is not None:
            return _fail(str(problem), problem.exit_code)
        return _fail(f"bruno stopped on an unexpected {type(error).__name__}. {_write_down(error)}", 1)


def _wrong_usage(error: typer.TyperException) -> int:
    message = error.format_message()
    where = getattr(getattr(error, "ctx", None), "command_path", "") or "bruno"
    end = "lists the commands" if where == "bruno" else "says what it takes"
    return _fail(message[:1].lower() + message[1:], 2, f"{where} --help {end}")


def _fail(message: str, code: int, fix: str = "") -> int:
    from bruno.guard.sanitise import safe_line
    from bruno.settings.secrets import redact

    text = safe_line(redact(message), 2_000)
    end = "" if not fix else f" {fix}" if text.endswith((".", "?")) else f". {fix}"
    print(f"bruno: {text}{end}", file=sys.stderr)  # noqa: T201
    return code


def _write_down(error: Exception) -> str:
    """Append the traceback to the log file; answer the words that name the file."""
    from bruno.settings.paths import paths
    from bruno.settings.secrets import redact

    log = paths().log
    text = "".join(traceback.format_exception(error))
    try:
        paths().ensure()
        with log.open("a", encoding="utf-8") as file:
            file.write(
                f"--- {datetime.now(UTC).isoformat()} bruno {' '.join(map(redact, sys.argv[1:3]))}\n{redact(text)}\n"
            )
    except (OSError, InputError) as problem:
        return f"Its traceback could not be written to {log}: {problem}"
    return f"Its traceback is in {log}"
