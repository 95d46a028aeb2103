"""A console in a process of its own, for tests that kill one: begins or carries on a run, and kills itself where it is told to.

    python -m tests.runs.console HOME URL KEY RUN_ID '{"begin": PLAN, "kill": {"after": "bruno.fleet.jobs:launch"}}'

`kill` names a function (`before` or `after` its first call) or an event (`{"event": ["follow", "progress"]}`).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from bruno.errors import BrunoError
from bruno.guard.plan import Plan
from bruno.runs import acting
from bruno.runs.events import RunEvent
from bruno.runs.runner import Runner
from tests.runs.conftest import confirm, make_world

TRIALS = 120
"""Long enough for the playbook to try two trials first."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: dict[str, Any]) -> None:
    for when in ("before", "after"):
        if when in kill:
            module, _, name = kill[when].partition(":")
            owner: Any = importlib.import_module(module)
            *inside, name = name.split(".")
            for part in inside:
                owner = getattr(owner, part)
            setattr(owner, name, deadly(getattr(owner, name), before=when == "before"))


def deadly(function: Any, *, before: bool) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            die()
        function(*args, **kwargs)
        die()

    return wrapped


def main() -> int:
    home, url, key, run_id, order = sys.argv[1:]
    told = json.loads(order)
    kill = told.get("kill", {})
    acting.GRACE = timedelta(seconds=2)

    def hear(event: RunEvent) -> None:
        if kill.get("event") == [event.step, event.kind.value]:
            die()

    world = make_world(Path(home), url, key)
    try:
        runner = Runner(world)
        if "begin" in told:
            plan = Plan.model_validate_json(told["begin"])
            settings: dict[str, object] = {"model": "demo", "search": {"trials": TRIALS}}
            runner.begin(plan, confirm(plan), model="demo", settings=settings)
        arm(kill)
        run = runner.carry_on(run_id, hear, retry=told.get("retry", False))
    except BrunoError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{run.state}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
