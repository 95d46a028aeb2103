"""A stand-in for the operator that says what a test tells it to: for tests of drawing and keys alone.

What the service really does is tested where the service is, and with it in the acceptance tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from bruno.guard.actions import CreateInstance, DestroyInstance, StopInstance, Target
from bruno.guard.decision import Decision, RuleHit, Verdict
from bruno.guard.permit import Permit
from bruno.guard.plan import Cost, Fact, Plan, Step
from bruno.intents import Clarification, Option, WatchRun
from bruno.intents import StopInstance as StopIntent
from bruno.operator.views import (
    Answer,
    Card,
    Happening,
    InstancesView,
    InstanceView,
    Reply,
    RunState,
    RunView,
    TrialView,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class ScriptedOperator:
    """Replies by exact words; remembers what it was asked and what it carried out."""

    sandbox = False

    def __init__(self, replies: dict[str, Reply] | None = None) -> None:
        self.replies = replies or {}
        self.asked: list[object] = []
        self.acted: list[tuple[Card, Permit | None]] = []
        self.carried: list[str] = []
        self.chosen: list[str] = []
        self.run_views: tuple[RunView, ...] = ()
        self.unfinished_views: tuple[RunView, ...] = ()
        self.view = InstancesView(known=True, rows=(), read_at=NOW, credit=25.0)
        self.happen: tuple[Happening, ...] = ()
        self.hold = threading.Event()
        self.hold.set()
        self.cancelled = False
        self.closed = False

    def preload(self) -> None:
        pass

    def ask(self, words: str, *, origin: object) -> Reply:
        self.asked.append(words)
        return self.replies.get(words, Answer(text=f"not understood: {words}", failed=True))

    def submit(self, intent: object, *, origin: object, words: str = "") -> Reply:
        self.asked.append(intent)
        return self.replies.get(intent.kind, Answer(text=f"did {intent.kind}"))  # type: ignore[attr-defined]

    def choose(self, clarification: Clarification, letter: str, *, origin: object) -> Reply:
        self.chosen.append(letter)
        return Answer(text=f"chose {letter}")

    def act(
        self, card: Card, permit: Permit | None, *, on_event: Callable, follow: bool = True, cancel: threading.Event
    ) -> Answer:
        self.acted.append((card, permit))
        return self._go(on_event, cancel, "acted")

    def carry_on(self, run_id: str, *, on_event: Callable, cancel: threading.Event, retry: bool = False) -> Answer:
        self.carried.append(run_id)
        return self._go(on_event, cancel, f"carried on {run_id}")

    def _go(self, on_event: Callable, cancel: threading.Event, text: str) -> Answer:
        for happening in self.happen:
            on_event(happening)
        while not self.hold.wait(0.01):
            if cancel.is_set():
                self.cancelled = True
                return Answer(text="let go")
        return Answer(text=text)

    def unfinished(self) -> tuple[RunView, ...]:
        return self.unfinished_views

    def runs(self) -> tuple[RunView, ...]:
        return self.run_views

    def run(self, name: str) -> RunView:
        return next(run for run in self.run_views if name in (run.run_id, run.name))

    def instances(self, *, fresh: bool = False) -> InstancesView:
        return self.view

    def close(self) -> None:
        self.closed = True


def start_card(verdict: Verdict = Verdict.CONFIRM, words: str = "start demo on an H200") -> Card:
    """A plan to rent; the ids in it are fixed so that snapshots are too."""
    plan = Plan(
        title="Start demo on an H200",
        run_id="demo-1",
        steps=(
            Step(
                action=CreateInstance(
                    offer_id=9001,
                    machine_id=178,
                    gpu="H200",
                    gpu_count=1,
                    image="pytorch/pytorch",
                    disk_gb=30,
                    label="bruno-demo-1",
                    max_dph=3.41,
                ),
                why="the cheapest offer that fits",
            ),
        ),
        facts=(
            Fact(name="disk_gb", value=30.0, source="arithmetic"),
            Fact(name="credit", value=None, source="provider"),
        ),
        notes=("2 x 0.3 GB of weights + 20 GB = 21 GB",),
        cost=Cost(per_hour=3.41, hours=0.1, total=0.34, stopped_per_day=0.15),
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=10),
        nonce="0" * 16,
    )
    hits = (RuleHit(rule="budget", verdict=verdict, reason="this costs money", fix="Type yes"),)
    return Card(plan=plan, decision=Decision(verdict=verdict, hits=hits, plan_id=plan.plan_id), origin_words=words)


def destroy_card() -> Card:
    """A plan that cannot be undone; its word names the label."""
    target = Target(instance_id=101, label="bruno-demo-1", ssh_port=40022)
    plan = Plan(
        title="Destroy instance 101",
        steps=(Step(action=DestroyInstance(target=target, loses="the saved model")),),
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=10),
        nonce="1" * 16,
    )
    decision = Decision(verdict=Verdict.CONFIRM, word="yes bruno-demo-1", plan_id=plan.plan_id)
    return Card(plan=plan, decision=decision)


def stop_card() -> Card:
    target = Target(instance_id=101, label="bruno-demo-1", ssh_port=40022)
    plan = Plan(
        title="Stop instance 101",
        run_id="demo-1",
        steps=(Step(action=StopInstance(target=target, kills="the engine at trial 5 of 20; no model saved")),),
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=10),
        nonce="2" * 16,
    )
    return Card(plan=plan, decision=Decision(verdict=Verdict.CONFIRM, plan_id=plan.plan_id))


def run_view(**changes: object) -> RunView:
    """A run under way, with a short history."""
    history = tuple(
        TrialView(number=number, refusals=refusals, prompts=40, kl=kl)
        for number, (refusals, kl) in enumerate([(31, 0.02), (12, 0.31), (3, 0.11), (6, 0.08), (4, 0.1)], 1)
    )
    values: dict[str, object] = {
        "run_id": "demo-1",
        "name": "demo-1",
        "model": "demo",
        "gpu": "H200",
        "state": RunState.SEARCHING,
        "step": "follow",
        "instance_id": 101,
        "label": "bruno-demo-1",
        "trial": 5,
        "trials": 20,
        "initial": (38, 40),
        "last": history[-1],
        "best": history[2],
        "history": history,
        "elapsed_seconds": 75.0,
        "remaining_seconds": 225.0,
        "spent": 0.071,
        "per_hour": 3.41,
        "read_at": NOW,
        "log_tail": ("* Initial refusals: 38/40", "Running trial 5 of 20...", "  * Refusals: 4/40"),
    }
    return RunView.model_validate(values | changes)


def instance_view(**changes: object) -> InstanceView:
    values: dict[str, object] = {
        "instance_id": 101,
        "label": "bruno-demo-1",
        "status": "running",
        "intended": "running",
        "gpu": "H200",
        "gpu_count": 1,
        "gpu_utilisation": 97.0,
        "disk_gb": 30.0,
        "disk_used_gb": 4.0,
        "per_hour": 3.41,
        "stopped_per_day": 0.15,
        "ssh": "root@203.0.113.9:40022",
        "age_seconds": 130.0,
        "run_id": "demo-1",
    }
    return InstanceView.model_validate(values | changes)


def two_meanings() -> Clarification:
    return Clarification(
        question="'finish the job' can mean two things",
        options=(
            Option(letter="A", text="let it continue to completion", consequence="nothing ends", intent=WatchRun()),
            Option(letter="B", text="stop it now", consequence="the process dies", intent=StopIntent()),
        ),
    )
