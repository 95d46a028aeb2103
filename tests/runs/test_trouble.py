"""One run through everything that goes wrong on a machine: a crash, a retry, a cut link, letting go, and somebody else's stop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bruno.errors import RunFailed
from bruno.fleet.host import connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import key_pair
from bruno.fleet.waits import wait_running
from bruno.records import Run
from bruno.runs.events import Kind, RunEvent
from bruno.runs.evidence import Evidence, gather
from bruno.runs.runner import Runner
from bruno.runs.world import World
from bruno.sandbox.thread import RunningSandbox
from tests.runs.conftest import confirm, make_plan


class Heard:
    """Everything a face would hear; `when` calls back at the first event that fits."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.waiting: list[tuple[Callable[[RunEvent], bool], Callable[[], object]]] = []

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)
        sys.stdout.write(f"{event.kind.value:12} {event.step:10} {event.text}\n")  # shown by pytest when the test fails
        for item in [item for item in self.waiting if item[0](event)]:
            self.waiting.remove(item)
            item[1]()

    def when(self, fits: Callable[[RunEvent], bool], do: Callable[[], object]) -> None:
        self.waiting.append((fits, do))

    def texts(self, kind: Kind) -> list[str]:
        return [str(event.text) for event in self.events if event.kind is kind]


def at_trial(number: int) -> Callable[[RunEvent], bool]:
    return lambda event: event.progress is not None and (event.progress.completed or 0) >= number


def lost_the_link(event: RunEvent) -> bool:
    return event.kind is Kind.WARNING and "lost the link" in event.text


def look(world: World, run: Run) -> Evidence:
    instance = wait_running(world.vast, run.instance_id or 0, minutes=1, poll_seconds=0.2)
    with connect(instance, key_pair(world.paths.keys), HostKeys(world.paths.known_hosts)) as host:
        return gather(world, run, host)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_through_trouble(world: World, sandbox: RunningSandbox) -> None:
    runner, plan, heard = Runner(world), make_plan(world), Heard()
    run_id = runner.begin(plan, confirm(plan), model="demo", settings={"model": "demo", "search": {"trials": 4}})
    cancel = threading.Event()
    out = _prepare(sandbox, runner, heard, cancel, run_id)

    # The engine crashes at trial 1. The run fails, saying where, why, and what it costs; nothing is stopped.
    (out / "crash").touch()
    with pytest.raises(
        RunFailed, match=r"trial 1 of 4 \(exit code 1\): the tensors are on fire; instance .* costs \$2\.1"
    ):
        runner.carry_on(run_id, heard)
    run = world.records.run(run_id)
    assert (run.state, world.records.steps(run_id)[-3].state) == ("failed", "failed")
    evidence = look(world, run)
    assert (evidence.value("process_running"), evidence.value("model_saved")) == (False, False)
    assert evidence.kills == "nothing: the engine does not run, it ended at trial 1 of 4; no model saved"

    # Taken up without a retry it fails the same way and launches nothing.
    with pytest.raises(RunFailed, match="tensors are on fire"):
        runner.carry_on(run_id, heard)
    assert len((out / "starts").read_text().split()) == 1

    # With a retry the engine is launched once more. At its pause the link is cut, then we let go.
    (out / "hold").write_text("1")
    heard.when(at_trial(1), lambda: sandbox.control.order("drop_ssh", instance=run.instance_id))
    heard.when(lost_the_link, lambda: (out / "hold").write_text("2"))
    heard.when(at_trial(2), cancel.set)
    run = runner.carry_on(run_id, heard, cancel, retry=True)
    assert run.state == "active"
    assert "let go" in heard.texts(Kind.DETACHED)[-1]
    assert len((out / "starts").read_text().split()) == 2

    # Asked once, the log says the same; nothing else was done.
    assert runner.refresh(run_id).progress.completed == 2
    assert len((out / "starts").read_text().split()) == 2

    # The engine went on without us and stands at its pause: the evidence says so, and where from.
    evidence = look(world, run)
    assert evidence.value("process_running") is True
    assert evidence.kills == "the engine at trial 2 of 4; no model saved"
    assert {item.source for item in evidence.items} >= {"process", "log", "events", "disk", "host", "records"}
    assert evidence.disagreements == ()
    unreached = gather(world, run, None)
    assert unreached.value("process_running") is None
    assert "whether the engine runs is unknown" in unreached.kills

    # Somebody else stops the instance while it is followed: not taken for our own stop, nor for the engine's end.
    heard.when(lambda event: event.step == "follow", lambda: sandbox.control.order("outbid", instance=run.instance_id))
    with pytest.raises(RunFailed, match="was stopped \\(not by bruno: outbid"):
        runner.carry_on(run_id, heard)
    assert world.records.run(run_id).state == "failed"
    assert world.records.discrepancies(run_id) == []


def _prepare(sandbox: RunningSandbox, runner: Runner, heard: Heard, cancel: threading.Event, run_id: str) -> Path:
    """Bring the run up to its launch and return the engine's folder on the instance."""
    heard.when(lambda event: event.kind is Kind.STEP_STARTED and event.step == "launch", cancel.set)
    assert runner.carry_on(run_id, heard, cancel).state == "active"
    cancel.clear()
    (instance,) = sandbox.control.overview()["instances"]
    root = sandbox.info.state / "instances" / str(instance["id"]) / "root" / "workspace" / "bruno" / run_id
    (root / "out").mkdir(parents=True)
    return root / "out"
