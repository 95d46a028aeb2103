"""`bruno progress`: one reading, or every change until the run ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bruno.cli.boundary import INTERRUPTED
from bruno.cli.follow import say_what_is_left
from bruno.cli.session import Flags, session, settings_in_force
from bruno.cli.show import Output
from bruno.guard.permit import Origin
from bruno.intents import ShowProgress

if TYPE_CHECKING:
    from bruno.operator.service import Operator
    from bruno.operator.views import Reply, RunView


def show_progress(flags: Flags, run: str | None, *, watch: bool, as_json: bool) -> int:
    """Print the progress of a run (None: of all that there are), once or until none is live any more."""
    output = Output(as_json=as_json)
    with session(flags) as operator:
        reply = _read(operator, run)
        output.reply(reply)
        if not watch or reply.kind != "progress":
            return 1 if reply.kind == "answer" and reply.failed else 0
        try:
            return _watch(operator, run, reply, output, settings_in_force(flags).fleet.poll_seconds)
        except KeyboardInterrupt:
            say_what_is_left(operator, output)
            return INTERRUPTED


def _read(operator: Operator, run: str | None) -> Reply:
    return operator.submit(ShowProgress(target=run), origin=Origin.COMMAND_LINE)


def _watch(operator: Operator, run: str | None, reply: Reply, output: Output, seconds: float) -> int:
    said = _said(reply)
    while reply.kind == "progress" and any(each.state.live for each in reply.runs):
        time.sleep(seconds)
        reply = _read(operator, run)
        if _said(reply) != said:
            said = _said(reply)
            output.reply(reply)
    return 0


def _said(reply: Reply) -> object:
    """What must change for a new line: not the clock, nor the money that runs with it."""
    if reply.kind != "progress":
        return reply
    return tuple(
        (each.run_id, each.state, each.step, each.trial, each.last, each.best, each.problem, _workers(each))
        for each in reply.runs
    )


def _workers(run: RunView) -> tuple[object, ...]:
    return tuple((each.state, each.scored, each.problem) for each in run.workers)
