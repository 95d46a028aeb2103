"""The gate: only the exact word, typed by somebody who could see the card, makes a permit."""

from __future__ import annotations

import pytest
from textual import events
from textual.command import CommandPalette
from textual.widgets import Button

from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin
from bruno.operator.views import Ask
from bruno.tui.confirm import ConfirmScreen, GateInput
from bruno.tui.modal import Modal
from tests.tui.driving import confirmation, opened, say, talk, until
from tests.tui.scripted import NOW, ScriptedOperator, destroy_card, start_card, two_meanings


@pytest.fixture
def operator() -> ScriptedOperator:
    return ScriptedOperator({"start demo": start_card(), "destroy it": destroy_card()})


async def test_the_word_makes_a_permit_for_exactly_this_plan(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        await confirmation(pilot)
        await pilot.press(*"yes", "enter")
        await until(pilot, lambda: operator.acted, "the plan is carried out")
        card, permit = operator.acted[0]
        assert permit.plan_id == card.plan.plan_id == start_card().plan.plan_id
        assert permit.origin is Origin.KEYBOARD
        permit.require(card.plan.steps[0].action, now=NOW)
        await until(pilot, lambda: "acted" in talk(app), "the answer is shown")


async def test_another_word_ends_it_with_nothing_done(make_app, operator) -> None:
    wrong = ["y", "YES", "Yes", "yes please", "sure", "do it", "complete", "no", "y e s", "yess", "yes bruno-demo-1"]
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        for number, typed in enumerate(wrong, 1):
            await say(pilot, "start demo")
            await confirmation(pilot)
            await say(pilot, typed)
            await until(pilot, lambda: not app.confirming, f"the confirmation closes on {typed!r}")
            await until(pilot, lambda n=number: talk(app).count("nothing was done") == n, f"it is said for {typed!r}")
        assert operator.acted == []


@pytest.mark.parametrize(("typed", "acts"), [("yes", False), ("yes bruno-demo-2", False), ("yes bruno-demo-1", True)])
async def test_what_cannot_be_undone_needs_its_label(make_app, operator, typed: str, acts: bool) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "destroy it")
        await confirmation(pilot)
        await say(pilot, typed)
        await until(pilot, lambda: not app.confirming and not app.busy, "it is over")
        assert bool(operator.acted) is acts


async def test_what_follows_the_first_answer_changes_nothing(make_app, operator) -> None:
    """`sure`, Enter, `yes`, Enter, faster than the card can go away: not confirmed, and the console lives."""
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        screen = await confirmation(pilot)
        gate = screen.query_one(GateInput)
        for word in ("sure", "yes", "yes"):  # as they lie in its queue when keys come in one burst
            screen.post_message(GateInput.Submitted(gate, word))
        await until(pilot, lambda: not app.confirming and not app.busy, "it is over")
        await until(pilot, lambda: "nothing was done" in talk(app), "it is said")
        assert operator.acted == []
        assert app.screen is app.main


@pytest.mark.parametrize("sentence", ["start demo", "finish the job", "?"])
async def test_escape_twice_closes_once(make_app, operator, sentence: str) -> None:
    operator.replies["finish the job"] = Ask(clarification=two_meanings())
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        if sentence == "?":
            await pilot.press("f1")
        else:
            await say(pilot, sentence)
        await until(pilot, lambda: isinstance(app.screen, Modal), "it opens")
        screen = app.screen
        for _ in range(3):
            screen.call_later(screen.action_leave if sentence == "?" else screen.action_cancel)
        await until(pilot, lambda: app.screen is app.main, "it closes")
        await pilot.pause()
        assert app.is_running
        assert operator.acted == []


async def test_keys_in_flight_are_dropped(make_app, operator) -> None:
    async with make_app(arm_seconds=3600).run_test() as pilot:
        app = await opened(pilot)
        await pilot.press(*"start demo", "enter", *"yes", "enter")
        screen = await confirmation(pilot)
        await pilot.press(*"yes", "enter")
        assert screen.query_one(GateInput).value == ""
        assert app.confirming
        assert operator.acted == []


async def test_a_key_that_is_older_than_the_gate_is_dropped(make_app, operator) -> None:
    async with make_app(arm_seconds=0.4).run_test() as pilot:
        await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        old = events.Key("y", "y")
        old.time = gate.armed_at - 0.001
        gate.post_message(old)
        await pilot.pause()
        assert gate.value == ""
        new = events.Key("y", "y")
        new.time = gate.armed_at
        gate.post_message(new)
        await pilot.pause()
        assert gate.value == "y"


async def test_a_submit_before_the_gate_is_armed_does_nothing(make_app, operator) -> None:
    async with make_app(arm_seconds=3600).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        gate.value = "yes"
        await gate.action_submit()
        await pilot.pause()
        assert app.confirming
        assert operator.acted == []


async def test_nothing_can_be_pasted(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        app.post_message(events.Paste("yes"))
        gate.post_message(events.Paste("yes\n"))
        app.copy_to_clipboard("yes")
        await pilot.press("ctrl+v")
        await pilot.press("shift+insert")
        await pilot.pause()
        assert gate.value == ""


async def test_the_gate_keeps_the_keys(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        screen = await confirmation(pilot)
        await pilot.press("tab", "shift+tab", "tab")
        assert app.focused is screen.query_one(GateInput)
        assert not screen.query(Button)
        await pilot.click("#card")
        assert app.focused is screen.query_one(GateInput)


async def test_no_other_key_reaches_the_console(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        screen = await confirmation(pilot)
        pane = app.main.shown_pane
        for key in ("ctrl+p", "f1", "f2", "f3", "f4", "f5", "ctrl+c", "up", "down", "pageup", "pagedown"):
            await pilot.press(key)
            await pilot.pause()
            assert app.screen is screen, key
            assert not isinstance(app.screen, CommandPalette)
            assert app.main.shown_pane == pane
        for action in ("command_palette", "help", "pane", "command_line", "act_on_instance", "refresh_now"):
            assert app.check_action(action, ()) is False
        assert operator.acted == []


async def test_leaving_is_possible_and_does_nothing(make_app, operator) -> None:
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot)
        await say(pilot, "start demo")
        await confirmation(pilot)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app.return_value is not None, "the console is left")
    assert operator.acted == []


async def test_escape_and_an_empty_enter(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        await confirmation(pilot)
        await pilot.press("enter", "enter")
        assert app.confirming
        await pilot.press("escape")
        await until(pilot, lambda: "cancelled, nothing was done" in talk(app), "it is said")
        assert operator.acted == []


async def test_an_expired_plan_cannot_be_confirmed(make_app, operator) -> None:
    late = make_app()
    late.clock = lambda: start_card().plan.expires_at
    async with late.run_test() as pilot:
        await until(pilot, lambda: late.main.is_mounted, "the console is there")
        await say(pilot, "start demo")
        await confirmation(pilot)
        await say(pilot, "yes")
        await until(pilot, lambda: "expired" in talk(late), "it is said")
    assert operator.acted == []


async def test_a_denied_plan_is_shown_and_asks_nothing(make_app, operator) -> None:
    operator.replies["start demo"] = start_card(Verdict.DENY)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        await until(pilot, lambda: "Denied. Nothing was done." in talk(app), "the card is shown")
        assert not app.confirming
        assert operator.acted == []


async def test_an_allowed_plan_goes_straight_on(make_app, operator) -> None:
    operator.replies["start demo"] = start_card(Verdict.ALLOW)
    async with make_app().run_test() as pilot:
        await opened(pilot)
        await say(pilot, "start demo")
        await until(pilot, lambda: operator.acted, "it is carried out")
        assert operator.acted[0][1] is None


async def test_a_read_only_console_confirms_nothing(make_app, operator) -> None:
    async with make_app(readonly=True).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        await until(pilot, lambda: "read-only" in talk(app), "it is said")
        assert not isinstance(app.screen, ConfirmScreen)
        assert operator.acted == []


async def test_two_plans_at_once_are_asked_one_after_the_other(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        app.ask("start demo")
        app.ask("destroy it")
        first = await confirmation(pilot)
        assert sum(isinstance(screen, ConfirmScreen) for screen in app.screen_stack) == 1
        await pilot.press("escape")
        await until(pilot, lambda: app.confirming and app.screen is not first, "the second question")
