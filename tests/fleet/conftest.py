"""The real `vastai` package and real Fabric against a sandbox in a thread. Its clock stands still unless moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair, key_pair
from bruno.fleet.models import Instance
from bruno.fleet.vast import Vast
from bruno.guard.actions import Action, CreateInstance
from bruno.guard.decision import Decision, Verdict
from bruno.guard.permit import Origin, Permit, mint
from bruno.guard.plan import Plan, Step
from bruno.sandbox import Clock, SandboxControl, running_sandbox
from bruno.sandbox.state import Pace

OFFER = 20914775  # H200, machine 29955, $2.61/h, storage $0.13/GB/month
MACHINE = 29955


@dataclass
class FakeTime:
    """A clock that moves only when somebody sleeps, and moves the sandbox with it."""

    control: SandboxControl | None = None
    now: datetime = datetime(2026, 5, 1, 12, tzinfo=UTC)
    slept: list[float] = field(default_factory=list)

    def clock(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)
        if self.control is not None:
            self.control.advance(seconds)


@dataclass(frozen=True)
class Cloud:
    """A sandbox account and bruno's view of it."""

    vast: Vast
    control: SandboxControl
    time: FakeTime
    url: str
    api_key: str

    @property
    def now(self) -> datetime:
        return self.time.now

    def another(self, api_key: str | None = None) -> Vast:
        """A second client with the same clock."""
        return Vast(api_key or self.api_key, self.url, clock=self.time.clock, sleep=self.time.sleep)

    def running(self, label: str = "bruno-a", offer: int = OFFER) -> Instance:
        """An instance that runs."""
        seeded = self.vast.instance(self.control.seed(offer, label=label))
        assert seeded is not None
        return seeded


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No netrc, proxy or account of whoever runs the tests."""
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "VAST_URL",
        "VAST_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with running_sandbox(tmp_path / "sandbox", clock=Clock.frozen(), pace=Pace(stopping=5, halted=3)) as sandbox:
        now = datetime.fromtimestamp(sandbox.control.overview()["now"], UTC)
        time = FakeTime(sandbox.control, now)
        vast = Vast(sandbox.info.api_key, sandbox.info.url, clock=time.clock, sleep=time.sleep)
        yield Cloud(vast, sandbox.control, time, sandbox.info.url, sandbox.info.api_key)
        sandbox.control.shutdown(stop_instances=True)


@pytest.fixture
def key(tmp_path: Path) -> KeyPair:
    return key_pair(tmp_path / "keys")


@pytest.fixture
def pins(tmp_path: Path) -> HostKeys:
    return HostKeys(tmp_path / "known_hosts")


@pytest.fixture
def machine(cloud: Cloud, key: KeyPair) -> Instance:
    """A running instance that knows bruno's key."""
    instance = cloud.running()
    cloud.vast.once("attach", "attach the key", lambda sdk: sdk.attach_ssh(instance.id, key.public_key))
    return instance


@pytest.fixture
def host(cloud: Cloud, machine: Instance, key: KeyPair, pins: HostKeys) -> Iterator[Host]:
    with connect(machine, key, pins, clock=cloud.time.clock, sleep=cloud.time.sleep) as opened:
        yield opened


def permit_for(*actions: Action, now: datetime) -> Permit:
    """What the person's `yes` to a plan of these actions gives."""
    plan = Plan(
        title="a plan",
        steps=tuple(Step(action=action) for action in actions),
        created_at=now,
        expires_at=now + timedelta(minutes=10),
    )
    return mint(plan, Decision(plan_id=plan.plan_id, verdict=Verdict.CONFIRM), "yes", origin=Origin.KEYBOARD, now=now)


def rental(label: str = "bruno-a", **changes: object) -> CreateInstance:
    """The rental of an H200 with 64 GB of disk."""
    fields = {
        "offer_id": OFFER,
        "machine_id": MACHINE,
        "gpu": "H200",
        "gpu_count": 1,
        "image": "pytorch/pytorch",
        "disk_gb": 64.0,
        "label": label,
        "max_dph": 2.63,
    }
    return CreateInstance.model_validate({**fields, **changes})
