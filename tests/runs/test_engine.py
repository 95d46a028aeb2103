"""One run with the true engine on the demo model: what its log says, its events say, and what comes home is what it saved."""

from __future__ import annotations

import json
import sys

import pytest

from bruno.runs.compare import compare
from bruno.runs.home import read_home
from bruno.runs.runner import Runner
from bruno.runs.world import World
from tests.runs.conftest import confirm, make_plan

ARGV = ("python", "-m", "bruno.engine", "abliterate", "--config", "config.toml")
SMALL = {
    "model": "demo",
    "search": {"trials": 2, "startup_trials": 1},
    "loading": {"dtype": ["float32"], "threads": 1},
    "data": {"bad_count": 6, "good_count": 6},
    "scoring": {"bad_count": 4, "good_count": 4, "max_new_tokens": 8, "held_out": False},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_true_engine_from_rent_to_home(world: World) -> None:
    plan = make_plan(world, argv=ARGV, **SMALL)
    runner = Runner(world)
    run_id = runner.begin(plan, confirm(plan), model="demo", settings=dict(SMALL), behaviour="over-refusal")
    run = runner.carry_on(run_id, lambda event: sys.stdout.write(f"{event.at:%X} {event.step} {event.text}\n"))
    assert run.state == "finished"
    seen = read_home(world.paths.runs / run_id)
    assert compare(seen.log, seen.events, at_rest=True) == []
    assert (seen.log.completed, seen.log.trials, seen.log.finished) == (2, 2, True)
    assert seen.log.initial_refusals is not None
    assert seen.log.initial_refusals.prompts == 4
    assert seen.log.unreadable == seen.events.unreadable == 0
    assert world.records.discrepancies(run_id) == []
    folder = world.paths.models / run_id
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 10**8
