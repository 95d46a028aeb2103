"""What else could reach an open confirmation: an earlier palette, bindings with priority, a stolen focus, a mouse, a resize."""

from __future__ import annotations

import pytest
from textual import events
from textual.binding import Binding
from textual.command import CommandPalette
from textual.widgets import Input

from bruno.intents import StopEverything
from bruno.tui.app import BrunoApp
from bruno.tui.confirm import ConfirmScreen, GateInput
from tests.tui.driving import confirmation, opened, say, until
from tests.tui.scripted import ScriptedOperator, destroy_card, run_view, start_card


@pytest.fixture
def operator() -> ScriptedOperator:
    return ScriptedOperator({"start demo": start_card(), "destroy it": destroy_card()})


def test_no_binding_of_bruno_has_priority() -> None:
    """A binding with priority is asked before the focused line: it would hear keys that are meant for the gate."""
    for owner in (BrunoApp, ConfirmScreen, GateInput):
        for binding in Binding.make_bindings(owner.BINDINGS):
            assert not binding.priority, (owner, binding)


async def test_only_leaving_is_heard_before_the_gate(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        await confirmation(pilot)
        first = {
            active.binding.action
            for active in app.screen.active_bindings.values()
            if active.binding.priority and active.enabled
        }
        assert first <= {"quit", "app.quit"}


async def test_a_palette_that_was_open_takes_no_key_of_the_confirmation(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the palette opens")
        app.ask("start demo")
        screen = await confirmation(pilot)
        assert app.focused is screen.query_one(GateInput)
        await pilot.press(*"stop", "enter")  # what one would pick in the palette is no word here
        await until(pilot, lambda: not app.confirming, "it ends")
        assert operator.acted == []
        assert all(not isinstance(asked, StopEverything) for asked in operator.asked)


async def test_keys_held_down_from_before_are_dropped_and_the_word_must_be_typed_whole(make_app, operator) -> None:
    async with make_app(arm_seconds=3600).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        for letter in "yes":  # before it is armed
            await pilot.press(letter)
        gate.armed_at = 0.0
        await pilot.press("enter")
        await pilot.pause()
        assert app.confirming
        assert operator.acted == []


async def test_a_stolen_focus_confirms_nothing(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        screen = await confirmation(pilot)
        app.main.ask.focus()
        app.main.ask.value = "yes"
        app.main.ask.post_message(Input.Submitted(app.main.ask, "yes"))
        await pilot.pause()
        assert app.screen is screen
        assert operator.acted == []
        assert "yes" not in operator.asked or operator.acted == []


async def test_pastes_in_every_shape_are_dropped(make_app, operator) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        for text in ("yes", "yes\n", "yes\r", "\x1b[200~yes\r\x1b[201~", "y\ne\ns\n"):
            app.screen.post_message(events.Paste(text))
            gate.post_message(events.Paste(text))
            await pilot.pause()
        for key in ("ctrl+v", "ctrl+shift+v", "shift+insert", "super+v"):
            await pilot.press(key)
        await pilot.click(GateInput, button=2)
        await pilot.pause()
        assert gate.value == ""
        assert app.confirming
        assert operator.acted == []


async def test_a_resize_neither_arms_nor_answers(make_app, operator) -> None:
    async with make_app(arm_seconds=3600).run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "start demo")
        gate = (await confirmation(pilot)).query_one(GateInput)
        armed = gate.armed_at
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert gate.armed_at == armed
        assert app.focused is gate
        assert app.screen.query_one("#question").region.area


async def test_stop_is_taken_while_a_run_is_followed(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.hold.clear()
    async with make_app().run_test() as pilot:
        await opened(pilot)
        await until(pilot, lambda: operator.carried, "the run is followed")
        await say(pilot, ":STOP")
        await until(pilot, lambda: StopEverything() in operator.asked, "STOP reaches the service")
        operator.hold.set()
