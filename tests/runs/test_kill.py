"""The console is killed with SIGKILL at every step of one run and started again: one create call, one launch, one whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bruno.errors import Denied
from bruno.guard.plan import Plan
from bruno.runs.home import read_home
from bruno.runs.runner import Runner
from bruno.runs.world import World
from bruno.sandbox.thread import RunningSandbox
from tests.runs.conftest import make_plan
from tests.runs.console import TRIALS

ROOT = Path(__file__).parents[2]
KILLED = -9


class Consoles:
    """Starts consoles in processes of their own, all on one home and one sandbox."""

    def __init__(self, world: World, sandbox: RunningSandbox, plan: Plan) -> None:
        self.world, self.sandbox, self.plan = world, sandbox, plan

    def __call__(self, *, begin: bool = False, kill: dict[str, Any] | None = None, **more: Any) -> tuple[int, str]:
        order = {"kill": kill or {}, **more} | ({"begin": self.plan.model_dump_json()} if begin else {})
        info = self.sandbox.info
        argv = [sys.executable, "-m", "tests.runs.console", str(self.world.paths.home), info.url, info.api_key]
        done = subprocess.run(
            [*argv, str(self.plan.run_id), json.dumps(order)],
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, KILLED) or done.stdout, done.stderr
        return done.returncode, done.stdout.strip()

    def instances(self) -> list[dict[str, Any]]:
        return self.sandbox.control.overview()["instances"]

    def out(self) -> Path:
        (instance,) = self.instances()
        folder = self.sandbox.info.state / "instances" / str(instance["id"]) / "root" / "workspace"
        return folder / "bruno" / str(self.plan.run_id) / "out"


@pytest.fixture
def consoles(world: World, sandbox: RunningSandbox) -> Consoles:
    return Consoles(world, sandbox, make_plan(world))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_every_step_it_rents_once_and_launches_once(consoles: Consoles) -> None:
    world = consoles.world
    assert consoles(begin=True, kill={"after": "bruno.fleet.acts:create"})[0] == KILLED
    assert [act.outcome for act in world.records.acts() if act.kind == "create_instance"] == ["pending"]
    out = consoles.out()
    out.mkdir(parents=True)
    (out / "hold").write_text("1")
    for kill in (
        {"event": ["wait_ready", "waiting"]},
        {"before": "bruno.fleet.host:Host.identify"},
        {"after": "bruno.fleet.files:send"},
        {"after": "bruno.fleet.jobs:launch"},  # the installer's
        {"event": ["install", "waiting"]},
        {"before": "bruno.fleet.jobs:launch"},  # the two trials'
        {"after": "bruno.fleet.jobs:launch"},
        {"event": ["smoke", "notice"]},
        {"before": "bruno.fleet.jobs:launch"},  # the engine's
        {"after": "bruno.fleet.jobs:launch"},
        {"event": ["follow", "progress"]},
    ):
        assert consoles(kill=kill)[0] == KILLED, kill
    (out / "hold").unlink()
    for kill in (
        {"before": "bruno.runs.deliver:_look"},
        {"event": ["fetch", "transfer"]},
        {"before": "bruno.runs.runner:Runner._finish"},
    ):
        assert consoles(kill=kill)[0] == KILLED, kill
    assert consoles() == (0, "finished")
    assert consoles() == (0, "finished")
    assert len(consoles.instances()) == 1
    assert len((out / "starts").read_text().split()) == 1
    run = world.records.run(str(consoles.plan.run_id))
    model = Path(run.local_model or "")
    assert (model / "model.safetensors").read_bytes() == (out / "demo-bruno" / "model.safetensors").read_bytes()
    home = world.paths.runs / run.run_id
    job = out.parent / "job" / "log"
    assert len((out.parent / "smoke" / "out" / "starts").read_text().split()) == 1
    assert (home / "engine.log").read_bytes() == job.read_bytes()
    assert (home / "events.jsonl").read_bytes() == (out / "events.jsonl").read_bytes()
    assert read_home(home).progress.completed == TRIALS
    assert [(act.kind, act.outcome) for act in world.records.acts()] == [
        ("run_playbook", "done"),
        ("register_key", "done"),
        ("create_instance", "done"),
    ]
    assert world.records.verify_audit().ok
    assert world.records.discrepancies(run.run_id) == []


def test_what_ended_well_while_nobody_looked_is_not_launched_again(consoles: Consoles) -> None:
    """`bruno resume` asks for a retry: of what failed."""
    assert consoles(begin=True, kill={"before": "bruno.fleet.jobs:launch"})[0] == KILLED
    out = consoles.out()
    out.mkdir(parents=True)
    (out / "hold").write_text("1")
    assert consoles(kill={"event": ["follow", "progress"]}, retry=True)[0] == KILLED
    (out / "hold").unlink()
    log, deadline = out.parent / "job" / "log", time.monotonic() + 60
    while "Optimization finished!" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert consoles(retry=True) == (0, "finished")
    assert len((out / "starts").read_text().split()) == 1


def test_killed_before_the_rent_it_asks_for_a_new_confirmation(consoles: Consoles) -> None:
    assert consoles(begin=True, kill={"event": ["rent", "step_started"]})[0] == KILLED
    code, said = consoles()
    assert code == 3
    assert "Nothing was rented" in said
    assert consoles.instances() == []


def test_killed_while_the_call_is_on_its_way_it_asks_the_provider(consoles: Consoles) -> None:
    assert consoles(begin=True, kill={"before": "bruno.fleet.acts:create"})[0] == KILLED
    code, said = consoles()
    assert code == 3
    assert "did not happen" in said
    assert consoles.instances() == []
    assert [act.outcome for act in consoles.world.records.acts() if act.kind == "create_instance"] == ["failed"]


def test_two_consoles_do_not_carry_one_run_on(consoles: Consoles, world: World) -> None:
    assert consoles(begin=True, kill={"event": ["rent", "step_started"]})[0] == KILLED
    with Runner(world).alone(str(consoles.plan.run_id)), pytest.raises(Denied, match="another bruno"):
        Runner(world).carry_on(str(consoles.plan.run_id), lambda event: None)
    code, said = consoles(begin=True)
    assert (code, consoles.instances()) == (3, [])
    assert "before" in said
