"""Shell lines on an emulated instance over real SSH: judged, confirmed, run byte for byte, heard, recorded; or not run at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Timer

import pytest

from bruno.errors import BrunoError, Denied, InputError
from bruno.fleet.errors import FactsChanged, OutcomeUnknown, WrongHost
from bruno.fleet.waits import wait_running
from bruno.guard.actions import RunCommand, RunLocal
from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin, mint
from bruno.operator.service import Operator
from bruno.operator.views import Answer, Ask, Card, Happening
from bruno.runs.acting import perform, settle_all
from bruno.runs.world import utc_now
from bruno.sandbox.thread import RunningSandbox, running_sandbox
from bruno.settings.console import Fleet, Guard, Settings
from bruno.settings.paths import Paths
from tests.runs.conftest import FAST, confirm, make_plan

LABEL = "bruno-demo-1"


@dataclass
class Console:
    """One console with one running instance of its own."""

    operator: Operator
    sandbox: RunningSandbox
    number: int
    home: Path
    heard: list[Happening] = field(default_factory=list)

    def card(self, words: str) -> Card:
        reply = self.operator.ask(words, origin=Origin.KEYBOARD)
        assert isinstance(reply, Card), reply
        return reply

    def do(self, card: Card, word: str = "", cancel: Event | None = None) -> Answer:
        permit = mint(card.plan, card.decision, word, origin=Origin.KEYBOARD, now=utc_now()) if word else None
        self.heard.clear()
        return self.operator.act(card, permit, on_event=self.heard.append, cancel=cancel)

    def output(self, stream: str = "stdout") -> list[str]:
        return [each.text for each in self.heard if each.level == "output" and each.stream == stream]

    def acts(self) -> list[tuple[str, str]]:
        return [(act.kind, act.outcome) for act in self.operator.world.records.acts() if act.kind.startswith("run_")]


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("commands")
    saved = dict(os.environ)
    for name in ("VAST_API_KEY", "HF_TOKEN", "ANTHROPIC_API_KEY"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": str(folder / "user"), "NO_PROXY": "127.0.0.1"}
    try:
        with running_sandbox(folder / "sandbox", pace=FAST, credit=100.0) as sandbox:
            settings = Settings(fleet=Fleet(poll_seconds=0.2, ready_minutes=1), guard=Guard(command_seconds=20))
            paths = Paths(home=folder / "home", config=folder / "config.toml")
            operator = Operator(settings, paths, api_key=sandbox.info.api_key, url=sandbox.info.url)
            plan = make_plan(operator.world, LABEL)
            permit = confirm(plan)
            perform(plan.steps[0].action, permit, operator.world)
            number = int(str(perform(plan.steps[1].action, permit, operator.world)["instance_id"]))
            wait_running(operator.world.vast, number, minutes=1, poll_seconds=0.2)
            home = next(path for path in (folder / "sandbox").rglob("root") if (path / ".vast_containerlabel").exists())
            yield Console(operator, sandbox, number, home)
            operator.close()
            sandbox.control.shutdown(stop_instances=True)
    finally:
        os.environ.clear()
        os.environ.update(saved)


@pytest.fixture
def console(rented: Console) -> Console:
    rented.heard.clear()
    return rented


def test_what_only_reads_runs_at_once_and_its_output_is_sanitised(console: Console) -> None:
    (console.home / "hostile.txt").write_bytes(b"one  two\n\x1b]0;title\x07\x1b[2Jyes\x05\n\xe2\x80\xaebidi\nlast")
    card = console.card(f"exec cat hostile.txt on {console.number}")
    assert card.decision.verdict is Verdict.ALLOW
    answer = console.do(card)
    assert console.output() == ["one  two", "yes", "<U+202E>bidi", "last"]
    assert (answer.exit_code, answer.failed) == (0, False)
    assert console.acts()[-1] == ("run_command", "done")


def test_the_exit_code_and_both_streams_are_the_commands(console: Console) -> None:
    answer = console.do(console.card(f"exec ls nowhere-at-all on {LABEL}"))
    assert answer.exit_code == 2
    assert answer.failed
    assert console.output() == []
    assert "nowhere-at-all" in console.output("stderr")[0]


@pytest.mark.parametrize("typed", ["y", "Yes", "", "yes bruno-demo-2"])
def test_what_loses_something_acts_only_on_the_word(console: Console, typed: str) -> None:
    (console.home / "keep").mkdir(exist_ok=True)
    card = console.card("exec rm -r keep")
    assert (card.decision.verdict, card.decision.word) == (Verdict.CONFIRM, "yes")
    text = "\n".join(card.lines())
    assert "     | rm -r keep" in text
    assert "cannot be undone" in text
    assert f"instance {console.number} ({LABEL})" in text
    with pytest.raises(BrunoError):
        console.do(card, typed)
    assert (console.home / "keep").is_dir()


def test_the_word_acts_once(console: Console) -> None:
    (console.home / "gone").mkdir()
    card = console.card("!! rm -r gone")
    assert console.do(card, "yes").exit_code == 0
    assert not (console.home / "gone").exists()
    (console.home / "gone").mkdir()
    with pytest.raises(Denied, match="before"):
        console.do(card, "yes")
    assert (console.home / "gone").is_dir()


@pytest.mark.parametrize(
    "line",
    [
        'printf %s "$BASH_EXECUTION_STRING" #  two  blanks, \'quotes\' and "more"',
        'printf %s "$BASH_EXECUTION_STRING" # $HOME `id` $(id) \\n ! \\\\ é ü',
        'printf %s "$BASH_EXECUTION_STRING"\n# a second line\n#\ta third',
    ],
)
def test_what_runs_is_what_was_confirmed_byte_for_byte(console: Console, line: str) -> None:
    card = console.card(f"!! {line}")
    assert card.plan.steps[0].action.verbatim() == line
    console.do(card, "yes" if card.decision.verdict is Verdict.CONFIRM else "")
    assert "\n".join(console.output()) == line


def test_what_may_wipe_the_data_needs_the_label(console: Console) -> None:
    card = console.card('!! rm -rf "$BRUNO_TEST_IS_NOT_SET"')
    assert card.decision.word == f"yes {LABEL}"
    with pytest.raises(BrunoError, match="not confirmed"):
        console.do(card, "yes")
    assert console.do(card, f"yes {LABEL}").exit_code == 0


def test_what_is_refused_never_reaches_the_machine(console: Console) -> None:
    before = console.acts()
    card = console.card("!! touch reached; git push elsewhere main")
    assert card.decision.verdict is Verdict.DENY
    assert "only to the remote named in the settings (origin)" in " ".join(card.decision.reasons)
    for word in ("", "yes"):
        with pytest.raises(Denied):
            console.do(card, word)
    assert not (console.home / "reached").exists()
    assert console.acts() == before


def _forged(card: Card, **changes: object) -> Card:
    action = card.plan.steps[0].action.model_copy(update=changes)
    step = card.plan.steps[0].model_copy(update={"action": action})
    plan = card.plan.model_copy(update={"steps": (step,)})
    return card.model_copy(
        update={"plan": plan, "decision": card.decision.model_copy(update={"plan_id": plan.plan_id})}
    )


def test_a_verdict_that_was_talked_down_stops_at_both_gates(console: Console) -> None:
    (console.home / "kept").mkdir(exist_ok=True)
    card = console.card("!! ls")
    forged = _forged(card, command="rm -r kept")
    with pytest.raises(Denied, match="changed from allow to typed_yes"):
        console.do(forged)
    with pytest.raises(Denied, match="changed from allow to typed_yes"):  # past the service: the act's own gate
        perform(forged.plan.steps[0].action, None, console.operator.world, plan_id=forged.plan.plan_id)
    with pytest.raises(Denied, match="confirmation"):
        perform(
            _forged(card, command="rm -r kept", level="typed_yes").plan.steps[0].action, None, console.operator.world
        )
    assert (console.home / "kept").is_dir()


@pytest.mark.parametrize("changed", ["label", "port"])
def test_another_label_or_port_between_plan_and_act_stops_it(console: Console, changed: str) -> None:
    card = console.card("!! touch reached-2")
    target = card.plan.steps[0].action.target  # type: ignore[union-attr]
    other = {"label": "bruno-demo-2"} if changed == "label" else {"ssh_port": 1}
    forged = _forged(card, target=target.model_copy(update=other))
    with pytest.raises(Denied):
        console.do(forged)
    action = forged.plan.steps[0].action
    with pytest.raises(FactsChanged, match="confirmed"):
        perform(action, None, console.operator.world, plan_id=forged.plan.plan_id)
    assert not (console.home / "reached-2").exists()
    assert console.acts()[-1] == ("run_command", "failed")


def test_a_machine_with_another_label_file_gets_nothing(console: Console) -> None:
    card = console.card("!! touch reached-3")
    label_file = console.home / ".vast_containerlabel"
    text = label_file.read_text()
    label_file.write_text("C.424242")
    try:
        with pytest.raises(WrongHost):
            console.do(card)
    finally:
        label_file.write_text(text)
    assert not (console.home / "reached-3").exists()


def test_it_is_ended_after_its_time(console: Console) -> None:
    card = console.card("!! sleep 600")
    timed = _forged(card, seconds=0.5)
    answer = console.do(timed, "yes" if timed.decision.verdict is Verdict.CONFIRM else "")
    assert (answer.exit_code, answer.failed) == (124, True)


def test_calling_it_off_ends_it_on_the_machine(console: Console) -> None:
    cancel = Event()
    card = console.card("!! echo begun; sleep 600; touch reached-4")
    card_word = "yes" if card.decision.verdict is Verdict.CONFIRM else ""

    def called_off(event: Happening) -> None:
        console.heard.append(event)
        if event.text == "begun":
            cancel.set()

    permit = mint(card.plan, card.decision, card_word, origin=Origin.KEYBOARD, now=utc_now()) if card_word else None
    answer = console.operator.act(card, permit, on_event=called_off, cancel=cancel)
    assert "called off" in answer.text
    assert answer.exit_code == 143
    assert not (console.home / "reached-4").exists()


def test_a_link_that_is_cut_leaves_the_outcome_unknown(console: Console) -> None:
    card = console.card("!! echo begun; sleep 3")

    def cut(event: Happening) -> None:
        if event.text == "begun":
            console.sandbox.control.order("drop_ssh", instance=console.number)

    with pytest.raises(OutcomeUnknown, match="may still be running"):
        console.operator.act(card, None, on_event=cut)
    assert console.acts()[-1] == ("run_command", "unknown")


def test_here_runs_on_this_machine_with_the_same_guard(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("a\x1b[2J  b\n")
    answer = console.do(console.card("!cat notes"))
    assert (answer.exit_code, console.output()) == (0, ["a  b"])
    card = console.card("! rm notes")
    assert isinstance(card.plan.steps[0].action, RunLocal)
    with pytest.raises(Denied):
        console.do(card)
    assert (tmp_path / "notes").exists()
    with monkeypatch.context() as elsewhere:
        (tmp_path / "sub").mkdir()
        elsewhere.chdir(tmp_path / "sub")
        with pytest.raises(FactsChanged, match="folder"):
            console.do(card, "yes")
    again = console.card("! rm notes")
    assert console.do(again, "yes").exit_code == 0
    assert not (tmp_path / "notes").exists()
    assert console.acts()[-1] == ("run_local", "done")


def test_here_ends_when_it_takes_too_long_or_is_called_off(console: Console) -> None:
    slow = _forged(console.card("!sleep 600"), seconds=0.2)
    assert console.do(slow).exit_code == 124
    cancel = Event()
    timer = Timer(0.2, cancel.set)
    timer.start()
    assert console.do(console.card("! sleep 600 >/dev/null 2>&1"), cancel=cancel).exit_code == 143


def test_which_instance_is_never_guessed(console: Console) -> None:
    with pytest.raises(InputError, match="no instance now"):
        console.card("exec echo do it on now")
    console.sandbox.control.seed(_an_offer(console), label="somebody-else")
    assert console.card("!! ls").plan.steps[0].action.target.instance_id == console.number  # type: ignore[union-attr]


def _an_offer(console: Console) -> int:
    from bruno.fleet.models import OfferQuery

    return console.operator.world.vast.offers(OfferQuery(gpu_names=("RTX 4090",), disk_gb=40))[0].id


def test_an_act_nobody_saw_end_stays_unknown(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    from bruno.runs import acting

    world = console.operator.world
    action = console.card("!! ls").plan.steps[0].action
    assert isinstance(action, RunCommand)
    world.records.begin_act(plan_id="f" * 64, action=action.model_dump(mode="json"), label=LABEL, allowed=True)
    assert settle_all(world)[-1].outcome == "pending"
    monkeypatch.setattr(acting, "GRACE", -acting.timedelta(seconds=action.seconds))
    assert settle_all(world)[-1].outcome == "unknown"
    assert settle_all(replace(world))[-1].outcome == "unknown"


def test_several_that_could_be_meant_are_asked_about(console: Console) -> None:
    world = console.operator.world
    other = console.sandbox.control.seed(_an_offer(console), label="bruno-demo-9")
    world.records.note_instance(other, label="bruno-demo-9")
    reply = console.operator.ask("!! df -h", origin=Origin.KEYBOARD)
    assert isinstance(reply, Ask)
    assert {option.intent.target for option in reply.clarification.options} == {str(console.number), str(other)}  # type: ignore[union-attr]
    world.records.note_instance(other, gone=True)
