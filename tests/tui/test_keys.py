"""Keys, the line, commands, the palette, panes and filters."""

from __future__ import annotations

import pytest
from textual.command import CommandPalette
from textual.widgets import Log

from bruno.errors import InputError, Unreachable
from bruno.guard.permit import Origin
from bruno.intents import DestroyInstance, ShowOffers, ShowProgress, StopInstance
from bruno.operator.views import Answer, Ask, InstancesView, Talk, Watch
from bruno.tui.clarify import ClarifyScreen
from bruno.tui.help import HelpScreen
from tests.tui.driving import confirmation, opened, say, talk, until
from tests.tui.scripted import NOW, ScriptedOperator, instance_view, run_view, stop_card, two_meanings


async def test_a_sentence_is_asked_and_answered(make_app, operator) -> None:
    operator.replies["what is running"] = Answer(text="nothing", rows=(("id", "state"), ("101", "running")))
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "what is running")
        await until(pilot, lambda: "101" in talk(app), "the table is shown")
        assert "› what is running" in talk(app)
        assert operator.asked == ["what is running"]


async def test_letters_have_no_default(make_app, operator) -> None:
    operator.replies["finish the job"] = Ask(clarification=two_meanings())
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "finish the job")
        await until(pilot, lambda: isinstance(app.screen, ClarifyScreen), "the question opens")
        await pilot.pause()
        await pilot.press("enter", "c", "space", "y")
        assert isinstance(app.screen, ClarifyScreen)
        await pilot.press("b")
        await until(pilot, lambda: "chose B" in talk(app), "the letter is taken")
        assert operator.chosen == ["B"]


async def test_letters_in_flight_choose_nothing(make_app, operator) -> None:
    operator.replies["finish the job"] = Ask(clarification=two_meanings())
    async with make_app(arm_seconds=3600).run_test() as pilot:
        app = await opened(pilot)
        await pilot.press(*"finish the job", "enter", "b", "a")
        await until(pilot, lambda: isinstance(app.screen, ClarifyScreen), "the question opens")
        await pilot.press("b", "a")
        assert isinstance(app.screen, ClarifyScreen)
        await pilot.press("escape")
        await until(pilot, lambda: "no letter was chosen" in talk(app), "it is said")
        assert operator.chosen == []


@pytest.mark.parametrize(("key", "pane"), [("f3", "run"), ("f4", "instances"), ("f5", "log"), ("f2", "talk")])
async def test_function_keys_show_panes(make_app, key: str, pane: str) -> None:
    async with make_app().run_test(size=(80, 24)) as pilot:
        app = await opened(pilot)
        await pilot.press(key)
        await pilot.pause()
        assert app.main.shown_pane == pane
        visible = {name for name in ("talk", "run", "instances", "log") if app.main.query_one(f"#{name}").region.area}
        assert visible == {pane}


async def test_to_talk_is_to_type(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await pilot.press("f5", "f2", *"quit it")
        assert app.main.ask.value == "quit it"


async def test_pages_of_the_conversation_are_turned_from_the_line(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        for number in range(60):
            app.main.talk.said(f"line {number}")
        await pilot.pause()
        await until(pilot, lambda: app.main.talk.scroll_y == app.main.talk.max_scroll_y > 0, "it is at its end")
        await pilot.press("pageup")
        await until(pilot, lambda: app.main.talk.scroll_y < app.main.talk.max_scroll_y, "it is scrolled up")
        await pilot.press("pagedown")
        await until(pilot, lambda: app.main.talk.scroll_y == app.main.talk.max_scroll_y, "it is at its end again")


async def test_a_filter_given_while_talking_shows_what_it_found(make_app, operator) -> None:
    operator.run_views = (run_view(),)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "/refusals")
        await until(pilot, lambda: app.main.shown_pane == "log", "the log is shown")


async def test_a_wide_console_shows_everything(make_app) -> None:
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        for name in ("talk", "run", "instances", "log", "ask"):
            assert app.main.query_one(f"#{name}").region.area, name


async def test_question_mark_helps_on_an_empty_line_and_is_typed_otherwise(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await pilot.press("a", "?")
        assert app.main.ask.value == "a?"
        app.main.ask.value = ""
        await pilot.press("?")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help opens")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.main, "help closes")


async def test_single_keys_are_text_in_the_line_and_keys_outside_it(make_app) -> None:
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot)
        await pilot.press("q")
        assert app.main.ask.value == "q"
        await pilot.press("backspace", "escape")
        assert app.focused is not app.main.ask
        await pilot.press("colon")
        assert app.focused is app.main.ask
        assert app.main.ask.value == ":"
        await pilot.press("backspace", "escape", "q")
        await until(pilot, lambda: app.return_value is not None, "the console is left")


@pytest.mark.parametrize("line", ["q", "quit", "exit", ":quit"])
async def test_words_that_leave(make_app, line: str) -> None:
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot)
        await say(pilot, line)
        await until(pilot, lambda: app.return_value is not None, "the console is left")


async def test_leaving_says_what_goes_on_and_lets_go(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.view = InstancesView(known=True, rows=(instance_view(),), read_at=NOW, credit=25.0)
    operator.hold.clear()
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot)
        await until(pilot, lambda: operator.carried == ["demo-1"] and app.snapshot.runs, "the run is taken up")
        await pilot.press("ctrl+q")
        await until(pilot, lambda: operator.cancelled, "the follow is told to let go")
    lines = "\n".join(app.return_value.lines)
    assert "demo-1 goes on without this console" in lines
    assert "instance 101 (bruno-demo-1) is running: $3.410/h" in lines


@pytest.mark.parametrize(
    ("line", "intent"),
    [
        (":progress", ShowProgress()),
        (":progress demo-1", ShowProgress(target="demo-1")),
        (":offers H200", ShowOffers(gpu="H200")),
        (":stop 101", StopInstance(target="101")),
    ],
)
async def test_commands_submit_their_intent(make_app, operator, line: str, intent: object) -> None:
    async with make_app().run_test() as pilot:
        await opened(pilot)
        await say(pilot, line)
        await until(pilot, lambda: operator.asked, "the service is asked")
        assert operator.asked == [intent]


@pytest.mark.parametrize(
    ("line", "words"),
    [(":stpo 1", "Did you mean :stop"), (":zzz", "no command :zzz"), (":start", ":start needs model")],
)
async def test_wrong_commands_are_said(make_app, operator, line: str, words: str) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, line)
        await until(pilot, lambda: words in talk(app), "it is said")
        assert operator.asked == []


async def test_the_palette_finds_every_command(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {":progress", ":stop", ":destroy", ":quit", "Theme"} <= titles
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette), "the palette opens")


async def test_a_palette_command_with_an_argument_is_finished_in_the_line(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        stop = next(each for each in app.get_system_commands(app.screen) if each.title == ":stop")
        stop.callback()
        assert app.main.ask.value == ":stop "


async def test_read_only_hides_what_acts(make_app, operator) -> None:
    operator.unfinished_views = (run_view(),)
    async with make_app(readonly=True).run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: "demo-1 is unfinished" in talk(app), "the unfinished run is said")
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert not {":stop", ":destroy", ":start", ":resume"} & titles
        await say(pilot, ":stop 101")
        await until(pilot, lambda: "read-only" in talk(app), "it is said")
        assert app.check_action("act_on_instance", ("stop",)) is False
        assert operator.asked == []
        assert operator.carried == []


async def test_keys_on_an_instance_ask_for_exactly_that_one(make_app, operator) -> None:
    rows = (instance_view(instance_id=7, label="first"), instance_view(instance_id=8, label="second"))
    operator.view = InstancesView(known=True, rows=rows, read_at=NOW)
    async with make_app().run_test(size=(160, 50)) as pilot:
        await opened(pilot)
        await pilot.press("f4", "down", "s")
        await until(pilot, lambda: operator.asked, "the service is asked")
        assert operator.asked == [StopInstance(target="8")]
        await pilot.press("D")
        await until(pilot, lambda: len(operator.asked) == 2, "the service is asked again")
        assert operator.asked[1] == DestroyInstance(target="8")


async def test_the_cursor_stays_on_its_instance_when_the_list_changes(make_app, operator) -> None:
    rows = (instance_view(instance_id=7), instance_view(instance_id=8))
    operator.view = InstancesView(known=True, rows=rows, read_at=NOW)
    app = make_app()
    now = [NOW]
    app.clock = lambda: now[0]
    async with app.run_test(size=(160, 50)) as pilot:
        await opened(pilot)
        app._poller.clock = app.clock
        await pilot.press("f4", "down")
        operator.view = InstancesView(known=True, rows=(instance_view(instance_id=6), *rows), read_at=NOW)
        await pilot.press("r")
        await until(pilot, lambda: app.main.instances.table.row_count == 3, "the new list is drawn")
        assert app.main.instances.current.instance_id == 8


async def test_filter_applies_to_log_and_instances(make_app, operator) -> None:
    operator.run_views = (run_view(),)
    operator.view = InstancesView(
        known=True, rows=(instance_view(), instance_view(instance_id=5, label="x")), read_at=NOW
    )
    async with make_app().run_test(size=(160, 50)) as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: len(app.main.query_one(Log).lines) >= 3, "the log is drawn")
        await say(pilot, "/refusals")
        await until(pilot, lambda: "2 of 3 lines" in str(app.main.log_pane.border_title), "the title counts")
        assert app.main.instances.table.row_count == 0
        await pilot.press("slash", "escape")
        await until(pilot, lambda: app.main.instances.table.row_count == 2, "the filter is gone")


async def test_what_was_typed_comes_back(make_app) -> None:
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "one")
        await say(pilot, "two")
        values = []
        for key in ("up", "up", "up", "down", "down"):
            await pilot.press(key)
            values.append(app.main.ask.value)
        assert values == ["two", "one", "one", "two", ""]


async def test_unfinished_runs_are_taken_up_at_start(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: "carried on demo-1" in talk(app), "it is carried on")
        assert "taking demo-1 up again" in talk(app)
        assert operator.carried == ["demo-1"]


async def test_the_same_run_is_not_followed_twice(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.replies["watch it"] = Watch(run_id="demo-1")
    operator.hold.clear()
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: operator.carried, "it is carried on")
        await say(pilot, "watch it")
        await until(pilot, lambda: "followed already" in talk(app), "it is said")
        assert operator.carried == ["demo-1"]
        operator.hold.set()


async def test_a_followed_run_can_be_stopped(make_app, operator) -> None:
    operator.run_views = operator.unfinished_views = (run_view(),)
    operator.replies["stop it"] = stop_card()
    operator.hold.clear()
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await until(pilot, lambda: operator.carried, "it is carried on")
        await say(pilot, "stop it")
        await confirmation(pilot)
        await say(pilot, "yes")
        await until(pilot, lambda: operator.acted, "the stop is carried out")
        assert operator.acted[0][0].plan.run_id == "demo-1"
        operator.hold.set()
        await until(pilot, lambda: not app.busy, "both end")


async def test_talking_to_a_model_leaves_for_it(make_app, operator) -> None:
    operator.replies["chat"] = Talk(model="/models/demo", beside="demo")
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot)
        await say(pilot, "chat")
        await until(pilot, lambda: app.return_value is not None, "the console is left")
    assert app.return_value.talk == ("/models/demo", "demo")


async def test_errors_of_the_service_are_one_line(make_app, operator, monkeypatch, tmp_path) -> None:
    def fail(words: str, *, origin: Origin) -> None:
        raise (Unreachable("the provider did not answer", fix="Try again") if "net" in words else ValueError("oops"))

    monkeypatch.setattr(operator, "ask", fail)
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        await say(pilot, "net")
        await until(pilot, lambda: "the provider did not answer. Try again" in talk(app), "it is said")
        await say(pilot, "bug")
        await until(pilot, lambda: "unexpected ValueError" in talk(app), "it is said")
        assert "oops" not in talk(app)
        assert "ValueError: oops" in (tmp_path / "bruno.log").read_text()


async def test_a_console_that_cannot_open_leaves_with_the_reason(make_app, operator) -> None:
    app = make_app()

    def fail() -> ScriptedOperator:
        raise InputError("no API key", fix="Set VAST_API_KEY")

    app._open_operator = fail
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.return_value is not None, "the console is left")
    assert str(app.return_value.error) == "no API key. Set VAST_API_KEY"
    assert app.return_code == 2
