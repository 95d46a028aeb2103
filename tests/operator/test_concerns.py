"""A report is kept beside what every source says; the second one holds; the person alone lifts it; STOP reaches every console."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Event

import pytest

from bruno.assistant import claude
from bruno.errors import Denied, InputError
from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin, mint
from bruno.intents import Clarification, LiftConstraint, Option, ResolveConcern, ShowCosts
from bruno.operator.card import worded
from bruno.operator.service import Operator
from bruno.records import Run

KEYBOARD = Origin.KEYBOARD
START = "start demo on an H200"


def ask(operator: Operator, words: str):
    return operator.ask(words, origin=KEYBOARD)


def add_run(operator: Operator, name: str = "demo-1", **changes: object) -> Run:
    now = datetime.now(UTC)
    fields = {
        "run_id": name,
        "label": f"bruno-{name}",
        "title": "Reshape demo",
        "model": "demo",
        "playbook": "abliterate",
        "plan_id": "p" * 64,
        "plan_json": "{}",
        "state": "active",
        "created_at": now,
        "updated_at": now,
    }
    return operator.records.add_run(Run(**{**fields, **changes}), ["rent", "launch", "follow"])


def permit_for(operator: Operator, card):
    return mint(card.plan, card.decision, "yes", origin=KEYBOARD, now=datetime.now(UTC))


def test_the_first_report_is_shown_beside_every_source_and_holds_nothing(world) -> None:
    operator, control = world
    mine = control.seed(ask(operator, "offers for a 4090").rows[0].offer_id, label="bruno-demo-1", running=False)
    add_run(operator, instance_id=mine)
    reply = ask(operator, "it looks stuck")
    assert "discrepancy: you say 'it looks stuck'" in reply.text
    assert "fine" not in reply.text
    sources = {row[2] for row in reply.rows[1:]}
    assert sources >= {"person", "log", "events", "study", "disk", "provider", "process table", "records"}
    said = {(row[0], row[2]): row[1] for row in reply.rows[1:]}
    assert said[("trials complete", "study")] == "unknown"
    assert said[("provider status", "provider")] == "stopped"
    assert ask(operator, START).decision.verdict is Verdict.CONFIRM
    assert control.acts() == []


def test_the_second_report_holds_until_it_is_resolved_in_words(world) -> None:
    operator, control = world
    add_run(operator)
    card = ask(operator, START)
    permit = permit_for(operator, card)
    ask(operator, "it looks stuck")
    reply = ask(operator, "nothing is happening")
    assert reply.text.startswith("ON HOLD")

    denied = ask(operator, START)
    assert denied.decision.verdict is Verdict.DENY
    reason = " ".join(denied.decision.reasons)
    for said in ("it looks stuck", "nothing is happening", "demo-1", "not resolved", "resolved:", "process running"):
        assert said in reason
    with pytest.raises(Denied, match="not resolved"):  # confirmed before the hold: not begun after it
        operator.act(card, permit, on_event=lambda _: None, cancel=Event())
    with pytest.raises(Denied, match="on hold"):
        operator.carry_on("demo-1", on_event=lambda _: None, retry=True)
    assert "ON HOLD" in operator.run("demo-1").discrepancies[0]
    assert "on hold" in str(ask(operator, "concerns").rows)
    assert ask(operator, "instances").kind == "instances"  # looking goes on

    assert "the hold on demo-1 is lifted" in ask(operator, "resolved: I killed the log viewer myself").text
    assert ask(operator, START).decision.verdict is Verdict.CONFIRM
    assert ask(operator, "concerns").text == "no concern is open, nothing is on hold"
    assert [entry.kind for entry in operator.records.audit_entries()][-1] == "concern resolved"
    assert control.acts() == []


def test_another_concern_is_another_concern(world) -> None:
    operator, _ = world
    add_run(operator)
    ask(operator, "it looks stuck")
    ask(operator, "the refusals are wrong")
    assert ask(operator, START).decision.verdict is Verdict.CONFIRM
    ask(operator, "something is wrong")  # names nothing: repeats what is open
    assert ask(operator, START).decision.verdict is Verdict.DENY
    with pytest.raises(InputError, match="several concerns"):
        ask(operator, "resolved: it was nothing")
    ask(operator, "resolved 1: the log was of another run")
    assert ask(operator, START).decision.verdict is Verdict.CONFIRM
    with pytest.raises(InputError, match="no such concern"):
        ask(operator, "resolved 1: again")


def test_resolving_without_a_concern_resolves_the_discrepancies_of_the_one_run(world) -> None:
    operator, _ = world
    add_run(operator)
    with pytest.raises(InputError, match="no concern is open"):
        ask(operator, "resolved: whatever")
    said = {"subject": "trial 5", "source": "log", "said": "3/104", "other_source": "events", "against": "4/104"}
    operator.records.add_discrepancy("demo-1", **said)
    assert "1 discrepancies of demo-1" in ask(operator, "resolved: the log was cut").text
    assert operator.run("demo-1").discrepancies == ()


def test_the_assistant_lifts_nothing(world, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, _ = world
    add_run(operator)
    ask(operator, "under 1 $/h")
    ask(operator, "concern: it looks stuck")
    ask(operator, "concern: it looks stuck")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key-12345")
    readings = [
        Option(letter="A", text="Show costs", consequence="nothing", intent=ShowCosts()),
        Option(letter="B", text="Show runs", consequence="nothing", intent=LiftConstraint()),
    ]
    for proposal in (
        LiftConstraint(),
        ResolveConcern(words="all is well"),
        Clarification(question="Which?", options=tuple(readings)),
    ):
        monkeypatch.setattr(claude, "understand", lambda *_, proposal=proposal, **__: proposal)
        assert "not understood" in ask(operator, "frobnicate the blorb").text
    assert len(operator.records.constraints()) == 1
    assert len(operator.records.concerns(held=True)) == 1


def test_a_stop_said_elsewhere_reaches_what_was_confirmed_here(world) -> None:
    operator, control = world
    card = ask(operator, START)
    permit = permit_for(operator, card)
    other = Operator(operator.settings, operator.paths, api_key=operator._api_key, url=operator._url)
    reply = ask(other, "STOP")
    assert "nothing new is started" in reply.text
    assert "nothing runs on" in reply.text
    with pytest.raises(Denied, match="STOP was said"):
        operator.act(card, permit, on_event=lambda _: None, cancel=Event())
    assert operator.runs() == ()
    assert control.acts() == []
    again = ask(operator, START)
    assert again.decision.verdict is Verdict.CONFIRM  # STOP is no ban: what is asked for and confirmed anew may begin
    assert permit_for(operator, again).minted_at > permit.minted_at
    other.close()


def test_stop_counts_no_unknown_price_as_nothing(world, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, control = world
    rows = ask(operator, "offers for a 4090").rows
    for label, row in zip(("one", "two"), rows, strict=False):
        control.seed(row.offer_id, label=label)
    view = operator.instances(fresh=True)
    unknown = view.rows[0].model_copy(update={"per_hour": None})
    monkeypatch.setattr(operator, "instances", lambda **_: view.model_copy(update={"rows": (unknown, *view.rows[1:])}))
    reply = ask(operator, "STOP")
    assert f"at least ${view.rows[1].per_hour:.3f}/h; the price of 1 is unknown" in reply.text


def test_stop_says_when_what_runs_on_is_unknown(world) -> None:
    operator, control = world
    control.order("list_gone", times=50)
    reply = ask(operator, "STOP")
    assert reply.failed
    assert "unknown" in reply.text


@pytest.mark.parametrize(
    "again",
    [
        "I tell you it is still stuck",
        "no, it's really stuck!",
        "still no progress",
        "the run hangs",
        "nothing has changed",
    ],
)
def test_the_same_concern_in_other_words_is_heard(world, again: str) -> None:
    operator, _ = world
    add_run(operator)
    ask(operator, "it looks stuck")
    assert "ON HOLD" in ask(operator, again).text


def test_figures_of_evidence_are_figures() -> None:
    assert [worded(value) for value in (None, True, False, 0, 1, 12, 0.5, "x")] == [
        "unknown",
        "yes",
        "no",
        "0",
        "1",
        "12",
        "0.5",
        "x",
    ]
