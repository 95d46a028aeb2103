"""Shell lines in the console: what is allowed runs at once, what is asked shows its card, output is drawn as it was printed."""

from __future__ import annotations

import pytest

from bruno.guard.actions import RunCommand, Target
from bruno.guard.decision import Decision, Verdict
from bruno.guard.plan import Plan, Step
from bruno.operator.views import Card, Happening
from tests.tui.driving import confirmation, opened, say, talk, until
from tests.tui.scripted import NOW, ScriptedOperator, start_card


def line_card(command: str, verdict: Verdict) -> Card:
    action = RunCommand(
        target=Target(instance_id=101, label="bruno-demo-1", ssh_port=40022),
        command=command,
        level="allow" if verdict is Verdict.ALLOW else "typed_yes",
        seconds=60,
    )
    plan = Plan(
        title="Run a shell line on instance 101",
        steps=(Step(action=action),),
        created_at=NOW,
        expires_at=start_card().plan.expires_at,
    )
    return Card(plan=plan, decision=Decision(verdict=verdict, plan_id=plan.plan_id))


@pytest.fixture
def operator() -> ScriptedOperator:
    scripted = ScriptedOperator(
        {"!! ls": line_card("ls", Verdict.ALLOW), "!! rm -r  x": line_card("rm -r  x", Verdict.CONFIRM)}
    )
    lines = ("a  b", "[@click=app.quit]c[/]", "  d")
    scripted.happen = tuple(Happening(at=NOW, level="output", text=text) for text in lines)
    return scripted


@pytest.mark.parametrize("readonly", [False, True])
async def test_what_only_reads_runs_at_once(make_app, operator, readonly: bool) -> None:
    async with make_app(readonly=readonly).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "!! ls")
        await until(pilot, lambda: "a  b\n[@click=app.quit]c[/]\n  d" in talk(app), "its output is drawn as it is")
        assert not app.confirming
        (acted,) = operator.acted
        assert acted[1] is None


async def test_what_loses_something_is_shown_and_asked(make_app, operator) -> None:
    async with make_app().run_test(size=(100, 40)) as pilot:
        app = await opened(pilot)
        await say(pilot, "!! rm -r  x")
        screen = await confirmation(pilot)
        assert "| rm -r  x" in str(screen.query_one("#lines").render())
        await pilot.press(*"yes", "enter")
        await until(pilot, lambda: operator.acted, "it is carried out")
        assert operator.acted[0][1] is not None
        await until(pilot, lambda: not app.busy, "it is over")


async def test_a_read_only_console_does_not_ask(make_app, operator) -> None:
    async with make_app(readonly=True).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "!! rm -r  x")
        await until(pilot, lambda: "read-only" in talk(app), "it says so")
        assert operator.acted == []
        assert not app.confirming
