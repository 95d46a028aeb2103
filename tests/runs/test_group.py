"""A run over several instances, each a real SSH server: rented once each, carried on as one, whatever is lost on the way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bruno.errors import BrunoError, Denied, RunFailed
from bruno.fleet import throttle
from bruno.fleet.keys import key_pair
from bruno.fleet.models import OfferQuery
from bruno.guard.actions import CreateInstance, RegisterKey, RunPlaybook
from bruno.guard.permit import Origin, mint
from bruno.guard.plan import Cost, Fact, Plan, Step, lifetime
from bruno.operator.service import Operator
from bruno.operator.views import Answer, Ask, Card
from bruno.runs import acting, job, runner
from bruno.runs.database import address_of
from bruno.runs.events import Kind, RunEvent
from bruno.runs.playbook import load_playbook
from bruno.runs.runner import Runner
from bruno.runs.world import World, utc_now
from bruno.sandbox.thread import RunningSandbox
from bruno.settings.engine import Search
from tests.engine.postgres import PASSWORD, Server, server
from tests.runs.conftest import confirm

ENGINE = Path(__file__).with_name("worker_engine.py")
GROUP = "bruno-demo-7f3a"
TRIALS = 8


@pytest.fixture
def quick_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing is tested where it is; here each machine takes this process's own Python."""
    script = tmp_path / "install.sh"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script.write_text(f'mkdir -p "$2/bin" && cp {python} "$2/bin/python"\n')
    monkeypatch.setattr(job, "_INSTALLER", script)
    for kind in ("create", "show", "list"):  # the provider's own pace is tested with the throttle
        monkeypatch.setitem(throttle.INTERVALS, kind, 0.05)


@pytest.fixture
def group(world: World, sandbox: RunningSandbox, tmp_path: Path, quick_install: None) -> Group:
    return Group(world, sandbox, tmp_path)


class Group:
    """The world, a plan for some instances, and what is told while it is carried on."""

    def __init__(self, world: World, sandbox: RunningSandbox, tmp_path: Path) -> None:
        self.world, self.sandbox = world, sandbox
        self.study = f"sqlite:///{tmp_path}/shared.sqlite3"
        self.told: list[RunEvent] = []

    def plan(self, instances: int = 2) -> Plan:
        offers = self.world.vast.offers(OfferQuery(gpu_names=("H200",), disk_gb=40))[:instances]
        labels = tuple(f"{GROUP}-{number}" for number in range(1, instances + 1))
        rents = [
            CreateInstance(
                offer_id=offer.id, machine_id=offer.machine_id or 0, gpu=offer.gpu, gpu_count=1, image="pytorch/pytorch",
                disk_gb=40, label=label, max_dph=offer.dph_total,
            )
            for offer, label in zip(offers, labels, strict=True)
        ]  # fmt: skip
        play = RunPlaybook(
            playbook="workers", steps=("all",), model="demo", workers=labels,
            engine_argv=("python", str(ENGINE), "--config", "config.toml"),
            worker_argv=("python", str(ENGINE), "worker", "--config", "config.toml"),
            settings={"model": "demo", "search": {"trials": TRIALS, "storage": self.study, "study": GROUP}},
        )  # fmt: skip
        created, expires = lifetime(self.world.clock())
        key = RegisterKey(fingerprint=key_pair(self.world.paths.keys).fingerprint)
        return Plan(
            title="Reshape demo", run_id=GROUP, steps=tuple(Step(action=each) for each in (key, *rents, play)),
            facts=(Fact(name="model_bytes", value=1e6, source="config"), Fact(name="trials", value=TRIALS, source="config")),
            cost=Cost(per_hour=sum(offer.dph_total for offer in offers)), created_at=created, expires_at=expires,
        )  # fmt: skip

    def keep_study_in(self, url: str) -> None:
        """The settings in force name this database; the plan its address alone."""
        self.world.settings.search = Search(storage=url)
        self.study = address_of(url).address

    def begin(self, instances: int = 2) -> Runner:
        plan = self.plan(instances)
        play = plan.steps[-1].action
        assert isinstance(play, RunPlaybook)
        Runner(self.world).begin(plan, confirm(plan), model="demo", settings=dict(play.settings))
        return Runner(self.world)

    def carry_on(self, on: Callable[[RunEvent], None] = lambda event: None, **more: Any) -> str:
        def hear(event: RunEvent) -> None:
            self.told.append(event)
            on(event)

        return Runner(self.world).carry_on(GROUP, hear, **more).state

    def operator(self) -> Operator:
        info = self.sandbox.info
        return Operator(self.world.settings, self.world.paths, api_key=info.api_key, url=info.url, sandbox=True)

    def said(self) -> str:
        return "\n".join(str(event.text) for event in self.told)

    def instances(self) -> dict[str, dict[str, Any]]:
        return {each["label"]: each for each in self.sandbox.control.overview()["instances"]}

    def out(self, row: int) -> Path:
        label = f"{GROUP}-{row}"
        run_id = GROUP if row == 1 else label
        number = self.instances()[label]["id"]
        return self.sandbox.info.state / "instances" / str(number) / "root" / "workspace" / "bruno" / run_id / "out"

    def states(self) -> list[str]:
        return [row.state for row in self.world.records.group(GROUP)]

    def creates(self) -> int:
        return sum(act["operation"] == "create" for act in self.sandbox.control.acts())


def test_two_instances_search_one_study_and_one_model_comes_home(group: Group) -> None:
    group.begin()
    assert group.carry_on() == "finished"
    assert group.states() == ["finished", "finished"]
    assert set(group.instances()) == {f"{GROUP}-1", f"{GROUP}-2"}
    starts = [len((group.out(row) / "starts").read_text().split()) for row in (1, 2)]
    assert starts == [1, 1]
    run = group.world.records.run(GROUP)
    assert (Path(run.local_model or "") / "model.safetensors").stat().st_size == 256 * 4000
    assert not (group.out(2) / "demo-bruno").exists()
    assert {event.run_id for event in group.told} == {GROUP}
    assert "worker 2: launch its worker" in group.said()
    assert [(act.kind, act.outcome) for act in group.world.records.acts()] == [
        ("run_playbook", "done"), ("register_key", "done"), ("create_instance", "done"), ("create_instance", "done"),
    ]  # fmt: skip
    assert group.world.records.verify_audit().ok
    assert group.carry_on() == "finished"
    assert group.creates() == 2
    _shown_as_one_run(group.operator(), group)
    _every_worker_is_asked(group.operator())
    _stopped_with_one_yes(group.operator(), group)


def _shown_as_one_run(operator: Operator, group: Group) -> None:
    (view,) = operator.runs()
    assert (view.run_id, view.state.value, view.trial, view.trials) == (GROUP, "done", TRIALS, TRIALS)
    assert [trial.number for trial in view.history] == list(range(1, TRIALS + 1))
    assert view.best is not None
    assert (view.best.number, view.best.refusals) == (TRIALS, 60 - 5 * TRIALS)
    assert [(each.number, each.state.value) for each in view.workers] == [(1, "done"), (2, "done")]
    assert sum(each.scored for each in view.workers) == TRIALS
    assert view.spent == pytest.approx(sum(each.spent or 0 for each in view.workers))
    assert view.per_hour == pytest.approx(sum(each.per_hour or 0 for each in view.workers))
    assert view.discrepancies == ()
    assert operator.run(f"{GROUP}-2").run_id == GROUP


def _every_worker_is_asked(operator: Operator) -> None:
    answer = operator.ask("it looks stuck", origin=Origin.KEYBOARD)
    assert isinstance(answer, Answer)
    asked = {row[0]: row[1] for row in answer.rows}
    assert asked["process running"] == asked["worker 2: process running"] == "no"
    assert asked["worker 2: label file"].startswith("C.")
    assert operator.ask("resolved: it was done", origin=Origin.KEYBOARD).failed is False  # type: ignore[union-attr]


def _stopped_with_one_yes(operator: Operator, group: Group) -> None:
    question = operator.ask("stop it", origin=Origin.KEYBOARD)
    assert isinstance(question, Ask)
    texts = [option.text for option in question.clarification.options]
    assert texts[0] == f"Stop the 2 instances of run {GROUP}"
    assert len(texts) == 3
    card = operator.choose(question.clarification, "a", origin=Origin.KEYBOARD)
    assert isinstance(card, Card)
    assert card.decision.word == "yes"
    numbers = sorted(each["id"] for each in group.instances().values())
    assert [step.action.target.instance_id for step in card.plan.steps] == numbers  # type: ignore[union-attr]
    permit = mint(card.plan, card.decision, "yes", origin=Origin.KEYBOARD, now=utc_now())
    answer = operator.act(card, permit, on_event=lambda _: None)
    assert all(f"instance {number} is stopped" in answer.text for number in numbers)
    assert all(each["stage"] == "exited" and each["processes"] == [] for each in group.instances().values())
    again = operator.ask(f"stop {GROUP}", origin=Origin.KEYBOARD)
    assert "are stopped already" in again.text  # type: ignore[union-attr]


def test_a_rental_that_is_refused_leaves_the_others_at_work_and_is_told_with_what_they_cost(group: Group) -> None:
    group.begin(3)
    taken = group.plan(3).steps[2].action
    assert isinstance(taken, CreateInstance)
    group.sandbox.control.seed(taken.offer_id, label="somebody-else")
    assert group.carry_on() == "finished"
    told = next(str(event.text) for event in group.told if "of 3 instances are rented" in str(event.text))
    first, third = (group.instances()[f"{GROUP}-{row}"]["id"] for row in (1, 3))
    assert told.startswith(f"2 of 3 instances are rented, instances {first}, {third} left as they are cost $")
    assert "Not rented: worker 2" in told
    assert group.states() == ["finished", "failed", "finished"]
    assert f"{GROUP}-2" not in group.instances()
    assert group.creates() == 2


def test_when_the_first_cannot_be_rented_nothing_is(group: Group) -> None:
    group.begin()
    group.sandbox.control.order("no_such_ask")
    with pytest.raises(BrunoError):
        group.carry_on()
    assert group.instances() == {}
    assert group.creates() == 1
    with pytest.raises(Denied, match="did not happen"):
        group.carry_on()
    assert group.creates() == 1


def test_a_lost_reply_is_asked_about_before_the_next_is_rented(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "GRACE", timedelta(seconds=2))
    group.begin()
    group.sandbox.control.order("reply_lost", operation="create")
    assert group.carry_on() == "finished"
    assert len(group.instances()) == 2
    assert group.creates() == 2


def test_an_instance_that_never_comes_up_does_not_hold_the_others(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = load_playbook("workers")
    steps = tuple(step.model_copy(update={"minutes": 0.1}) if step.do == "wait_ready" else step for step in book.steps)
    monkeypatch.setattr(runner, "load_playbook", lambda name: book.model_copy(update={"steps": steps}))
    group.begin()
    rented: list[str] = []

    def slow_second(event: RunEvent) -> None:
        if event.kind is Kind.STEP_DONE and event.step == "rent" and not rented:
            rented.append(str(event.text))
            group.sandbox.control.order("slow_loading")

    assert group.carry_on(slow_second) == "finished"
    assert group.states() == ["finished", "failed"]
    assert "worker 2 is lost" in group.said()
    row = group.world.records.group(GROUP)[1]
    assert row.instance_id == group.instances()[f"{GROUP}-2"]["id"]
    assert "goes on with the others" in group.said()


@pytest.mark.parametrize(
    ("how", "said"), [("crash", "the tensors are on fire"), ("outbid", "was stopped (not by bruno: outbid")]
)
def test_a_worker_that_dies_is_told_and_its_trials_are_done_by_the_others(group: Group, how: str, said: str) -> None:
    def lose_second(event: RunEvent) -> None:
        if not str(event.text).startswith("worker 2") or event.step != "launch":
            return
        if event.kind is Kind.STEP_STARTED:
            group.out(2).mkdir(parents=True)
            (group.out(2) / ("crash" if how == "crash" else "hold")).touch()
        if event.kind is Kind.STEP_DONE and how == "outbid":
            group.sandbox.control.order("outbid", instance=group.instances()[f"{GROUP}-2"]["id"])

    group.begin()
    assert group.carry_on(lose_second) == "finished"
    assert group.states() == ["finished", "failed"]
    assert said in group.said()
    homes = [group.world.paths.runs / run_id for run_id in (GROUP, f"{GROUP}-2")]
    scored = [runner.read_home(home).progress.history for home in homes]
    assert sorted(trial.trial for history in scored for trial in history) == list(range(1, TRIALS + 1))


def test_without_the_first_the_run_stops_and_a_retry_takes_it_up_again(group: Group) -> None:
    def crash_first(event: RunEvent) -> None:
        if str(event.text).startswith("worker 1") and event.step == "launch" and event.kind is Kind.STEP_STARTED:
            group.out(1).mkdir(parents=True)
            (group.out(1) / "crash").touch()

    group.begin()
    with pytest.raises(RunFailed, match="its other workers are as they were") as caught:
        group.carry_on(crash_first)
    assert "\n" not in str(caught.value)
    assert group.states()[0] == "failed"
    (group.out(1) / "crash").unlink()
    assert group.carry_on(retry=True) == "finished"
    assert group.creates() == 2


def test_letting_go_leaves_every_worker_at_work_and_a_second_console_goes_on(group: Group) -> None:
    cancel = threading.Event()

    def let_go(event: RunEvent) -> None:
        if event.kind is Kind.STEP_DONE and event.step == "launch":
            cancel.set()

    group.begin()
    assert group.carry_on(let_go, cancel=cancel) == "active"
    assert "let go of run" in group.said()
    assert group.carry_on() == "finished"
    assert group.creates() == 2


def test_no_follow_ends_when_every_worker_is_launched(group: Group) -> None:
    group.begin()
    assert group.carry_on(until="launch") in ("active", "finished")
    launched = [event for event in group.told if event.kind is Kind.STEP_DONE and event.step == "launch"]
    assert len(launched) == 2
    assert group.carry_on() == "finished"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


def test_the_study_in_postgresql_is_reached_from_each_machine_and_its_password_is_in_no_record(
    group: Group, postgres: Server
) -> None:
    group.keep_study_in(postgres.new_database("good"))
    group.begin()
    assert group.carry_on() == "finished"
    for row in (1, 2):
        number = group.instances()[f"{GROUP}-{row}"]["id"]
        assert (
            f"worker {row}: instance {number} reaches the study's database at 127.0.0.1:{postgres.port}" in group.said()
        )
    group.world.records.close()
    for path in (path for path in group.world.paths.home.rglob("*") if path.is_file()):
        assert not any(word in path.read_bytes() for word in (PASSWORD.encode(), b"rd-of-tests")), path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rd-of-tests", "rd-of-nobody", r"reaches 127.0.0.1:\d+, but postgresql.*://bruno@.* does not let it in"),
        (":PORT/", ":1/", r"instance \d+ cannot reach 127.0.0.1:1, where the study is kept \(.*Connection refused\)"),
    ],
)  # fmt: skip
def test_a_database_that_a_machine_cannot_use_is_named_before_its_worker_starts(
    group: Group, postgres: Server, old: str, new: str, said: str
) -> None:
    group.keep_study_in(postgres.url.replace(old.replace("PORT", str(postgres.port)), new))
    group.begin()
    with pytest.raises(RunFailed, match=said):
        group.carry_on()
    assert [row.state for row in group.world.records.steps(GROUP) if row.name in ("reach", "launch")] == [
        "failed",
        "pending",
    ]
    assert not group.out(1).exists()


def test_another_database_than_the_one_confirmed_is_refused(group: Group, postgres: Server) -> None:
    group.keep_study_in(postgres.url)
    group.begin()
    group.world.settings.search = Search(storage=postgres.url.replace("/postgres", "/elsewhere"))
    with pytest.raises(
        RunFailed, match=r"this run keeps its study in .*/postgres, and search.storage is now .*/elsewhere"
    ):
        group.carry_on()
