"""`bruno exec`: a shell line on an instance, to its end. Its output alone goes to stdout, and its exit code is the command's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bruno.cli.conclude import Conclusion
from bruno.cli.session import session
from bruno.cli.show import Output
from bruno.errors import InputError
from bruno.guard.permit import Origin

if TYPE_CHECKING:
    from bruno.cli.session import Flags


def execute(flags: Flags, command: str, *, on: str | None, seconds: float | None, as_json: bool) -> int:
    """Plan, judge, confirm where the guard asks, run, follow.

    Raises:
        InputError: the line is empty, too long or holds a NUL; no such instance.
        Denied, NotConfirmed, Unreachable: what the guard, the person or the machine said.
    """
    from pydantic import ValidationError

    if not command.strip():
        raise InputError("no shell line was given", fix="For example: bruno exec 'df -h' --on 101")
    from bruno.intents import RunCommand

    try:
        intent = RunCommand(command=command, target=on, seconds=seconds)
    except ValidationError as error:
        raise InputError(f"this cannot be run as a shell line: {error.errors()[0]['msg']}") from error
    with session(flags) as operator:
        reply = operator.submit(intent, origin=Origin.COMMAND_LINE, words=command)
        return Conclusion(operator, Output(as_json=as_json, aside=True), readonly=flags.readonly).of(reply)
