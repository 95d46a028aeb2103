"""`bruno` without a command: the console. The service is opened after the first frame, in the console's own thread."""

from __future__ import annotations

import sys

from bruno.cli.session import Flags, console_paths, open_operator
from bruno.errors import InputError


def console(flags: Flags) -> int:
    """Open the console and stay until it is left; a conversation with a model is held between two openings.

    Raises:
        InputError: there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError("the console needs a terminal", fix='Without one: bruno do "..." , bruno progress --json')
    from bruno.tui.app import BrunoApp
    from bruno.tui.leave import Leave

    while True:
        app = BrunoApp(
            lambda: open_operator(flags),
            paths=console_paths(sandbox=flags.sandbox),
            sandbox=flags.sandbox,
            readonly=flags.readonly,
        )
        leave = app.run() or Leave()
        for line in leave.lines:
            sys.stdout.write(f"{line}\n")
        if leave.error is not None:
            raise leave.error
        if leave.talk is None:
            return app.return_code or 0
        from bruno.cli.engine import chat

        chat(*leave.talk)
