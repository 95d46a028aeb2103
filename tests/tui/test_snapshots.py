"""How the console looks at 80x24 and 160x50, with a fixed clock. `pytest tests/tui --snapshot-update` draws them anew."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from bruno.operator.views import InstancesView, RunState
from bruno.tui.confirm import ConfirmScreen
from tests.tui.driving import confirmation, opened, say, until
from tests.tui.scripted import NOW, ScriptedOperator, destroy_card, instance_view, run_view, start_card

SMALL, LARGE = (80, 24), (160, 50)


@pytest.fixture
def operator() -> ScriptedOperator:
    scripted = ScriptedOperator({"start demo on an H200": start_card(), "destroy 101": destroy_card()})
    scripted.run_views = (run_view(), run_view(run_id="old", name="old", state=RunState.DONE, history=()))
    other = instance_view(
        instance_id=102, label="somebody-else", run_id=None, status="stopped", intended="stopped", gpu_utilisation=None
    )
    scripted.view = InstancesView(known=True, rows=(instance_view(), other), read_at=NOW, credit=25.0)
    return scripted


async def settled(pilot: Pilot) -> None:
    """Everything drawn: the service open, the plot there, no cursor that blinks."""
    app = await opened(pilot)
    await until(pilot, lambda: app.main.query("#trial-plot"), "the plot is there")
    for line in app.screen.query(Input):
        line.cursor_blink = False
    app.animation_level = "none"
    await pilot.pause()


@pytest.mark.parametrize("pane", ["talk", "run", "instances", "log"])
def test_small(snap_compare, make_app, pane: str) -> None:
    async def before(pilot: Pilot) -> None:
        await settled(pilot)
        pilot.app.animation_level = "none"
        await pilot.press({"talk": "f2", "run": "f3", "instances": "f4", "log": "f5"}[pane])
        await pilot.pause(0.5)

    assert snap_compare(make_app(), terminal_size=SMALL, run_before=before)


def test_large(snap_compare, make_app) -> None:
    assert snap_compare(make_app(), terminal_size=LARGE, run_before=settled)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("words", ["start demo on an H200", "destroy 101"])
def test_confirmation(snap_compare, make_app, size: tuple[int, int], words: str) -> None:
    async def before(pilot: Pilot) -> None:
        await settled(pilot)
        await say(pilot, words)
        screen = await confirmation(pilot)
        assert isinstance(screen, ConfirmScreen)
        screen.query_one(Input).cursor_blink = False
        await pilot.pause()

    assert snap_compare(make_app(), terminal_size=size, run_before=before)


def test_unknown(snap_compare, make_app, operator) -> None:
    operator.view = InstancesView(known=False, problem="the provider answered HTTP 500")
    operator.run_views = (run_view(state=RunState.UNKNOWN, read_at=None, spent=None, per_hour=None),)
    assert snap_compare(make_app(), terminal_size=LARGE, run_before=settled)


def test_no_colour(snap_compare, make_app, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(make_app(), terminal_size=SMALL, run_before=settled)


def test_help(snap_compare, make_app) -> None:
    async def before(pilot: Pilot) -> None:
        await settled(pilot)
        await pilot.press("f1")
        await pilot.pause()

    assert snap_compare(make_app(), terminal_size=LARGE, run_before=before)
