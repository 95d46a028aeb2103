"""What the panes draw: stale, unknown, hostile, growing."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.widgets import Log, Static

from bruno.errors import Unreachable
from bruno.operator.views import Answer, Happening, InstancesView, RunState
from bruno.tui.log_pane import new_lines
from bruno.tui.poller import Poller, Snapshot
from bruno.tui.run_pane import facts
from tests.tui.driving import opened, say, talk, until
from tests.tui.scripted import NOW, ScriptedOperator, instance_view, run_view


def drawn(app, selector: str) -> str:
    return str(app.main.query_one(selector, Static).render())


@pytest.mark.parametrize(("seconds", "stale"), [(0, False), (15, False), (16, True), (3600, True)])
def test_older_than_three_polls_is_stale(seconds: float, stale: bool) -> None:
    snapshot = Snapshot(NOW, poll=timedelta(seconds=5))
    assert snapshot.is_stale(NOW - timedelta(seconds=seconds)) is stale


def test_never_read_is_stale() -> None:
    assert Snapshot(NOW).is_stale(None)


def test_the_poller_keeps_what_it_knew_and_says_why(operator) -> None:
    now = [NOW]
    operator.run_views = (run_view(),)
    poller = Poller(operator, 5, lambda: now[0])
    assert poller.read().runs == operator.run_views

    def fail() -> None:
        raise Unreachable("the database is locked")

    operator.runs = fail
    now[0] += timedelta(seconds=60)
    later = poller.read()
    assert later.runs == (run_view(),)
    assert later.problem == "the database is locked"
    assert later.is_stale(later.instances.read_at)


def test_the_poller_reads_the_list_at_its_own_pace(operator) -> None:
    now = [NOW]
    read = []
    operator.instances = lambda fresh=False: read.append(fresh) or InstancesView(known=True, read_at=now[0])
    poller = Poller(operator, 5, lambda: now[0])
    for _ in range(10):
        poller.read()
        now[0] += timedelta(seconds=1)
    assert read == [False, False]
    poller.read(fresh=True)
    assert read == [False, False, True]


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_jumps_does_not_stop_the_reading(operator, hours: int) -> None:
    now = [NOW]
    operator.instances = lambda fresh=False: InstancesView(known=True, read_at=now[0])
    poller = Poller(operator, 5, lambda: now[0])
    first = poller.read()
    now[0] += timedelta(hours=hours)
    assert Snapshot(now[0], poll=timedelta(seconds=5)).is_stale(first.instances.read_at)
    assert poller.read().instances.read_at == now[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "paying nothing"),
        ((instance_view(),), "paying $3.410/h"),
        ((instance_view(per_hour=None),), "unknown price"),
    ],
)
async def test_what_costs_now_stands_first(make_app, operator, rows: tuple, said: str) -> None:
    operator.view = InstancesView(known=True, rows=rows, read_at=NOW, credit=1.0)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        line = drawn(app, "StatusBar")
        assert said in line
        assert line.index("paying") < line.index("credit")


@pytest.mark.parametrize(("sandbox", "said"), [(True, "Nothing here costs real money"), (False, "your Vast.ai credit")])
async def test_a_stranger_is_told_what_to_say_and_what_it_costs(make_app, sandbox: bool, said: str) -> None:
    async with make_app(sandbox=sandbox).run_test() as pilot:
        app = await opened(pilot)
        assert "start demo on an H200" in talk(app)
        assert said in talk(app)


async def test_what_happened_stands_above_the_answer_it_led_to(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.happen = (Happening(at=NOW, text="the last step", level="good"),)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: "carried on" in talk(app) and "the last step" in talk(app), "both are said")
        assert talk(app).index("the last step") < talk(app).index("carried on demo-1")


async def test_a_stale_list_is_shown_as_stale(make_app, operator) -> None:
    operator.view = InstancesView(known=True, rows=(instance_view(),), read_at=NOW - timedelta(minutes=5))
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        assert "STALE" in drawn(app, "StatusBar")
        assert "STALE: read 5m 0s ago" in drawn(app, "#instances-note")


async def test_an_unreadable_list_is_unknown(make_app, operator) -> None:
    operator.view = InstancesView(known=False, problem="HTTP 500", credit=None)
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        assert "paying unknown" in drawn(app, "StatusBar")
        assert "HTTP 500" in drawn(app, "StatusBar")
        assert "unknown: the provider's list could not be read. HTTP 500" in drawn(app, "#instances-note")


async def test_a_run_that_fails_says_why(make_app, operator) -> None:
    operator.run_views = (
        run_view(state=RunState.FAILED, problem="killed: out of memory", discrepancies=("a says 1, b says 2",)),
    )
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        assert "✘ failed" in drawn(app, "#run-head")
        assert "✘ killed: out of memory" in drawn(app, "#run-facts")
        assert "! a says 1, b says 2" in drawn(app, "#run-facts")


async def test_a_reading_that_does_not_come_back_grows_old_on_the_screen(make_app, operator) -> None:
    now = [NOW]
    app = make_app()
    app.clock = lambda: now[0]
    stuck = threading.Event()
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot)
        operator.runs = lambda: stuck.wait(30) and ()
        now[0] += timedelta(minutes=2)
        await until(pilot, lambda: "STALE" in drawn(app, "StatusBar"), "the data is called stale")
        assert "read 2m 0s ago" in drawn(app, "StatusBar")
        stuck.set()


async def test_a_question_that_takes_long_is_said_to_be_asked(make_app, operator) -> None:
    answer = threading.Event()

    def slow(words: str, *, origin: object) -> Answer:
        answer.wait(30)
        return Answer(text="at last")

    operator.ask = slow
    app = make_app()
    app.patience = 0.01
    async with app.run_test() as pilot:
        await opened(pilot)
        await say(pilot, "what does it cost")
        await until(pilot, lambda: "still asking" in talk(app), "it is said")
        answer.set()
        await until(pilot, lambda: "at last" in talk(app), "the answer")
        assert "still asking" not in talk(app)


@pytest.mark.parametrize(
    ("state", "stale"),
    [
        (RunState.STARTING, False),
        (RunState.INSTALLING, False),
        (RunState.SEARCHING, True),
        (RunState.SAVING, True),
        (RunState.COPYING, False),
        (RunState.DONE, False),
        (RunState.UNKNOWN, True),
    ],
)
async def test_a_log_is_stale_only_while_it_should_grow(make_app, operator, state: RunState, stale: bool) -> None:
    operator.run_views = (run_view(state=state, read_at=None),)
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        assert ("STALE" in drawn(app, "#run-facts")) is stale


async def test_money_is_on_the_screen_of_a_narrow_terminal(make_app, operator) -> None:
    operator.view = InstancesView(
        known=True, rows=(instance_view(status="provisioning", intended="running"),), read_at=NOW
    )
    async with make_app().run_test(size=(60, 20)) as pilot:
        app = await opened(pilot)
        await pilot.press("f4")
        wide = app.main.instances.table.columns
        before = next(iter(wide.values())).get_render_width(app.main.instances.table)
        operator.view = InstancesView(known=True, rows=(instance_view(),), read_at=NOW)
        await pilot.press("r")
        table = app.main.instances.table
        await until(pilot, lambda: table.get_row_at(0)[0].plain == "▶ running", "the new list is drawn")
        widths = [column.get_render_width(table) for column in table.columns.values()]
        assert widths[0] < before
        assert sum(widths[:3]) < 60
        assert table.get_row_at(0)[2].plain == "$3.410/h"


def test_facts_are_raw_and_complete() -> None:
    lines = facts(run_view(model_saved="/w/m", local_model="/home/m"), stale=True)
    assert "refusals   38/40 at the start" in lines
    assert "last       4/40  KL 0.1  (trial 5)" in lines
    assert "best       3/40  KL 0.11  (trial 3)" in lines
    assert "saved      /w/m" in lines
    assert "at home    /home/m" in lines
    assert any(line.startswith("STALE") for line in lines)
    assert facts(run_view(initial=None, last=None, best=None), stale=False)[0] == "refusals   unknown at the start"


async def test_runs_are_stepped_through(make_app, operator) -> None:
    operator.run_views = (run_view(), run_view(run_id="b", name="b", state=RunState.DONE, log_tail=("other log",)))
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        await pilot.press("escape", "right_square_bracket")
        await pilot.pause()
        assert app.main.run_pane.chosen.run_id == "b"
        assert next(iter(app.main.query_one(Log).lines)) == "other log"
        await pilot.press("left_square_bracket")
        assert app.main.run_pane.chosen.run_id == "demo-1"


async def test_the_log_grows_by_what_is_new(make_app, operator) -> None:
    operator.run_views = (run_view(log_tail=("a", "b")),)
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        operator.run_views = (run_view(log_tail=("b", "c")),)
        await until(
            pilot, lambda: [line for line in app.main.query_one(Log).lines if line] == ["a", "b", "c"], "one new line"
        )
        await pilot.press("escape", "p")
        assert "PAUSED" in str(app.main.log_pane.border_title)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(0, 12), st.integers(1, 8))
def test_new_lines_of_a_growing_log_lose_none(log: list[str], grown: int, window: int) -> None:
    """Numbered lines are all different, as log lines with their trial are: then exactly the new ones are found."""
    lines = [f"{letter}{number}" for number, letter in enumerate(log)]
    seen = lines[: min(grown, len(lines))]
    old, new = tuple(seen[-window:]), tuple(lines[-window:])
    missing = lines[len(seen) :]
    found = new_lines(old, new)
    if len(missing) <= window and (not seen or set(old) & set(new)):
        assert list(found) == missing
    elif missing:
        assert found[-1] == missing[-1]


async def test_hostile_text_is_shown_and_does_nothing(make_app, operator) -> None:
    nasty = "[@click=app.quit]press[/] [/] [bold] \x1b]0;title\x07\x05\x1b[2J \u202edrow"
    operator.run_views = (run_view(name=nasty, problem=nasty, log_tail=(nasty,)),)
    operator.view = InstancesView(known=True, rows=(instance_view(label=nasty),), read_at=NOW, credit=1.0)
    operator.happen = (Happening(at=NOW, text=nasty, level="warn"),)
    operator.unfinished_views = operator.run_views
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        await say(pilot, nasty)
        await until(pilot, lambda: "not understood" in talk(app), "it is answered")
        await until(pilot, lambda: "carried on" in talk(app), "it is carried on")
        text = talk(app) + drawn(app, "#run-facts") + "".join(app.main.query_one(Log).lines)
        assert "[@click=app.quit]press[/]" in text
        assert "<U+202E>" in text
        text += str(app.main.log_pane._border_title) + str(app.main.run_pane._border_title)
        row = app.main.instances.table.get_row_at(0)
        assert row[3].plain.startswith("[@click=app.quit]press[/]")
        assert not row[3].spans
        for pane in (app.main.log_pane, app.main.run_pane):
            assert "[@click=app.quit]press[/]" in pane._border_title.plain
            assert not pane._border_title.spans
        assert "\x1b" not in text
        assert "\x05" not in text
        assert not next(iter(app.main.query(".entry").results(Static))).render().spans


async def test_quiet_happenings_are_left_to_the_views(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.happen = tuple(
        Happening(at=NOW, text=f"event {level}", level=level) for level in ("quiet", "info", "good", "bad")
    )
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: "event bad" in talk(app), "happenings are drawn")
        assert "event quiet" not in talk(app)
        assert "03:04:05 ✔ event good" in talk(app)


@pytest.mark.parametrize("gone", ["StatusBar", "RunPane", "InstancesPane", "LogPane", "Conversation"])
async def test_a_timer_that_comes_while_the_console_closes_ends_nothing(make_app, gone: str) -> None:
    """Panes go one by one; once such a tick ended a console with a traceback."""
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await app.main.query_one(gone).remove()
        app._grow_older()
        app.draw_happenings()
        await pilot.pause()
        assert app.is_running


async def test_the_conversation_is_bounded(make_app, monkeypatch) -> None:
    monkeypatch.setattr("bruno.tui.conversation.MOST_ENTRIES", 20)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        for number in range(50):
            app.main.talk.said(f"line {number}")
            await pilot.pause()
        assert len(app.main.talk.children) <= 20
        assert "line 49" in talk(app)
        assert "line 10\n" not in talk(app)


def test_scripted_operator_has_the_service_s_methods() -> None:
    """What the stand-in answers must exist on the real one."""
    from bruno.operator.service import Operator

    for name in (
        "preload",
        "ask",
        "submit",
        "choose",
        "act",
        "carry_on",
        "unfinished",
        "runs",
        "run",
        "instances",
        "close",
    ):
        assert callable(getattr(Operator, name))
        assert callable(getattr(ScriptedOperator, name))
