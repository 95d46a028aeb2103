"""Waiting for the console without sleeping for luck: a condition, or a failure that says which."""

from __future__ import annotations

from collections.abc import Callable

from textual.pilot import Pilot
from textual.widgets import Input, Static

from bruno.tui.app import BrunoApp
from bruno.tui.confirm import ConfirmScreen


async def until(pilot: Pilot, condition: Callable[[], object], what: str) -> None:
    """Let the console work until `condition` holds."""
    for _ in range(1000):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError(f"never happened: {what}")


async def opened(pilot: Pilot) -> BrunoApp:
    """The console with its service open and one reading drawn."""
    app = pilot.app
    assert isinstance(app, BrunoApp)
    await until(pilot, lambda: app.snapshot.instances is not None, "the first reading")
    await pilot.pause()
    return app


async def say(pilot: Pilot, text: str) -> None:
    """Put a line into the focused input and enter it. (`press` for each letter is for tests that are about the keys.)"""
    line = pilot.app.focused
    assert isinstance(line, Input)
    line.value = text
    await pilot.press("enter")


async def confirmation(pilot: Pilot) -> ConfirmScreen:
    """The confirmation, once it is open."""
    await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the confirmation opens")
    await pilot.pause()
    screen = pilot.app.screen
    assert isinstance(screen, ConfirmScreen)
    return screen


def talk(app: BrunoApp) -> str:
    """Everything in the conversation, as text."""
    return "\n".join(str(entry.render()) for entry in app.main.talk.query(Static))
