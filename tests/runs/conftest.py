from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bruno.fleet.keys import key_pair
from bruno.fleet.models import OfferQuery
from bruno.fleet.vast import Vast
from bruno.guard.actions import CreateInstance, RegisterKey, RunPlaybook
from bruno.guard.decision import Decision, Verdict
from bruno.guard.permit import Origin, Permit, mint
from bruno.guard.plan import Cost, Fact, Plan, Step, lifetime
from bruno.records import Records
from bruno.runs.world import World, utc_now
from bruno.sandbox.state import Pace
from bruno.sandbox.thread import RunningSandbox, running_sandbox
from bruno.settings.console import Fleet, Settings
from bruno.settings.paths import Paths

ENGINE = Path(__file__).with_name("lines_engine.py")
FAST = Pace(provisioning=0.1, created=0.1, loading=0.2, booting=0.1, stopping=0.1, halted=0.1, rebooting=0.2)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningSandbox]:
    """A provider on loopback whose instances are real SSH servers, brought up in half a second."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_sandbox(tmp_path / "sandbox", pace=FAST, credit=100.0) as running:
        yield running
        running.control.shutdown(stop_instances=True)


def make_world(folder: Path, url: str, key: str) -> World:
    """A world on a sandbox; the same folder gives the same world again, in another process too."""
    settings = Settings(fleet=Fleet(poll_seconds=0.2, ready_minutes=1))
    return World(
        records=Records(folder / "bruno.sqlite3", utc_now),
        vast=Vast(key, url),
        settings=settings,
        paths=Paths(home=folder, config=folder / "config.toml"),
    )


@pytest.fixture
def world(tmp_path: Path, sandbox: RunningSandbox) -> Iterator[World]:
    world = make_world(tmp_path / "home", sandbox.info.url, sandbox.info.api_key)
    yield world
    world.records.close()


def make_plan(
    world: World, name: str = "bruno-demo-1", *, argv: tuple[str, ...] | None = None, **settings: object
) -> Plan:
    """A plan such as the operator makes, for the cheapest H200; the engine is `lines_engine.py` unless `argv` names another."""
    offer = min(world.vast.offers(OfferQuery(gpu_names=("H200",), disk_gb=40)), key=lambda offer: offer.dph_total)
    created, expires = lifetime(world.clock())
    create = CreateInstance(
        offer_id=offer.id,
        machine_id=offer.machine_id or 0,
        gpu=offer.gpu,
        gpu_count=1,
        image="pytorch/pytorch",
        disk_gb=40,
        label=name,
        max_dph=offer.dph_total,
    )
    engine = argv or ("python", str(ENGINE), "--config", "config.toml")
    said = {"model": "demo", "search": {"trials": 4}, **settings}
    play = RunPlaybook(playbook="abliterate", steps=("all",), engine_argv=engine, model="demo", settings=said)
    key = RegisterKey(fingerprint=key_pair(world.paths.keys).fingerprint)
    facts = {"model_bytes": 1e6, "trials": 4}
    return Plan(
        title="Reshape demo",
        run_id=name,
        steps=tuple(Step(action=action) for action in (key, create, play)),
        facts=tuple(Fact(name=fact, value=value, source="config") for fact, value in facts.items()),
        cost=Cost(per_hour=offer.dph_total),
        created_at=created,
        expires_at=expires,
    )


def confirm(plan: Plan) -> Permit:
    decision = Decision(verdict=Verdict.CONFIRM, plan_id=plan.plan_id)
    return mint(plan, decision, "yes", origin=Origin.KEYBOARD, now=utc_now())
