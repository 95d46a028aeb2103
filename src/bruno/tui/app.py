"""The console: keys and workers. It opens the service after its first frame and draws everything from one poller's snapshots."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import SystemCommand
from textual.screen import Screen

from bruno.errors import BrunoError, InputError, machine_problem
from bruno.guard.sanitise import safe_line
from bruno.settings.paths import Paths
from bruno.tui import commands, words
from bruno.tui.ask_line import AskLine
from bruno.tui.conversation import Conversation
from bruno.tui.keymap import BINDINGS, read_keymap
from bruno.tui.leave import Leave
from bruno.tui.main_screen import MainScreen
from bruno.tui.poller import RUNS_SECONDS, Poller, Snapshot
from bruno.tui.replies import Replies
from bruno.tui.threads import in_thread

if TYPE_CHECKING:
    from bruno.operator.service import Operator

DRAW_SECONDS = 0.2
"""Happenings are drawn in batches, five times a second at most."""
AGE_SECONDS = 1.0
"""A reading that does not come back must not leave the last one looking new."""
_WHILE_CONFIRMING = frozenset({"quit"})
_ACTING = frozenset({"act_on_instance"})


class BrunoApp(Replies):
    """bruno's console.

    Args:
        open_operator: opens the service; called once, in a thread, after the first frame.
        paths: this console's folders (for the log of defects and the keymap).
        sandbox: shown as a badge. readonly: everything is shown, nothing is acted on.
        poll_seconds: between two readings of the provider's list; None takes `fleet.poll_seconds` of the settings.
        clock: aware UTC now.
    """

    TITLE = "bruno"
    # Here and not on the screen: Textual does not read the CSS_PATH of the screen that an app starts with.
    CSS_PATH: ClassVar = [
        Path(__file__).with_name(f"{name}.tcss")
        for name in (
            *("main_screen", "status_bar", "conversation", "ask_line"),
            *("run_pane", "trial_plot", "instances_pane", "log_pane"),
        )
    ]
    BINDINGS = BINDINGS
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        open_operator: Callable[[], Operator],
        *,
        paths: Paths,
        sandbox: bool = False,
        readonly: bool = False,
        poll_seconds: float | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__()
        self.clock = clock
        self.readonly = readonly
        self.sandbox = sandbox
        self.main = MainScreen(sandbox=sandbox, readonly=readonly)
        self.snapshot = Snapshot(clock())
        self._open_operator = open_operator
        self._paths = paths
        self._poll_seconds = poll_seconds
        self._opened: asyncio.Future[Operator] | None = None
        self._poller: Poller | None = None
        self.user_keys, self._keymap_problem = read_keymap(paths.config)
        # vastai reads `sys.stdout.encoding` when it is imported; Textual's stand-in for stdout has none. With it the
        # import can wait until after the first frame.
        for capture in (self._capture_stdout, self._capture_stderr):
            capture.encoding = "utf-8"  # type: ignore[attr-defined]

    def get_default_screen(self) -> Screen:
        return self.main

    def on_mount(self) -> None:
        self.set_keymap(self.user_keys)
        self._opened = asyncio.get_running_loop().create_future()
        self.set_interval(DRAW_SECONDS, self.draw_happenings)
        self.set_interval(AGE_SECONDS, self._grow_older)
        self.call_after_refresh(self._after_first_frame)

    def _after_first_frame(self) -> None:
        if self._keymap_problem:
            self.main.talk.said(f"! {self._keymap_problem}", "warn")
        self.run_worker(self._open(), group="open", exit_on_error=False)

    # Opening

    async def _open(self) -> None:
        try:
            operator = await in_thread(self._open_operator, "bruno-open")
            await in_thread(operator.preload, "bruno-preload")
        except BrunoError as error:
            self.exit(Leave(error=error), return_code=error.exit_code)
            return
        except Exception as error:  # noqa: BLE001 - written down; nothing works without the service
            failed = BrunoError(self.write_down(error))
            self.exit(Leave(error=failed), return_code=failed.exit_code)
            return
        assert self._opened is not None  # noqa: S101 - on_mount has run
        self._opened.set_result(operator)
        self._poller = Poller(operator, self._poll_seconds or operator.settings.fleet.poll_seconds, self.clock)
        self.run_worker(self._poll(), group="poll", exit_on_error=False)
        self.run_worker(self._attach_plot(), group="plot", exit_on_error=False)
        await self._take_up(operator)

    async def operator_when_open(self) -> Operator:
        assert self._opened is not None  # noqa: S101 - on_mount has run
        return await asyncio.shield(self._opened)

    async def _take_up(self, operator: Operator) -> None:
        try:
            unfinished = await in_thread(operator.unfinished)
        except BrunoError as error:
            self.main.talk.said(f"✘ what is unfinished is unknown: {error}", "bad")
            return
        for run in unfinished:
            if self.readonly:
                self.main.talk.said(f"{run.name} is unfinished; a read-only console does not take it up")
                continue
            self.main.talk.said(f"taking {run.name} up again where its records leave it: {words.run_line(run)}", "good")
            self.carry_on(run)

    async def _attach_plot(self) -> None:
        def load() -> type:
            from bruno.tui.trial_plot import TrialPlot

            return TrialPlot

        plot = await in_thread(load)
        self.main.run_pane.attach(plot())

    # Drawing

    async def _poll(self) -> None:
        assert self._poller is not None  # noqa: S101 - set before this starts
        while True:
            await self._read()
            # With nothing under way only another console can change the records: the slower pace will do.
            moving = self.busy or any(run.state.live for run in self.snapshot.runs)
            await asyncio.sleep(min(RUNS_SECONDS, self._poller.seconds) if moving else self._poller.seconds)

    async def _read(self, *, fresh: bool = False) -> None:
        assert self._poller is not None  # noqa: S101 - set before the first reading
        poller = self._poller
        try:
            self.snapshot = await in_thread(lambda: poller.read(fresh=fresh), "bruno-poll")
        except Exception as error:  # noqa: BLE001 - a defect in a view must not end the console; it is written down
            self.snapshot = Snapshot(self.clock(), problem=self.write_down(error))
        self.main.show(self.snapshot)

    def _grow_older(self) -> None:
        if self._poller is not None:
            self.main.show(replace(self.snapshot, at=self.clock()))

    def draw_happenings(self) -> None:
        if not self.main.query(Conversation):  # the console is closing; what happened is in the records
            return
        printed: list[str] = []
        while not self.happenings.empty():
            happening = self.happenings.get_nowait()
            if happening.level == "output":  # lines that came together are one entry
                printed.append(happening.text)
                continue
            self.main.talk.printed(printed)
            printed.clear()
            if happening.level != "quiet":  # the views show that
                self.main.talk.happened(happening.at, happening.level, happening.text)
        if printed:
            self.main.talk.printed(printed)

    def write_down(self, error: Exception) -> str:
        from bruno.settings.secrets import redact

        known = machine_problem(error)
        if known is not None:
            return str(known)
        try:
            self._paths.ensure()
            with self._paths.log.open("a", encoding="utf-8") as file:
                file.write(f"--- {self.clock().isoformat()}\n{redact(''.join(traceback.format_exception(error)))}\n")
        except (OSError, InputError) as problem:
            return f"unexpected {type(error).__name__}; its traceback could not be written: {problem}"
        return f"unexpected {type(error).__name__}; its traceback is in {self._paths.log}"

    # What was typed

    def on_ask_line_said(self, event: AskLine.Said) -> None:
        if event.text.casefold() in ("q", "quit", "exit"):
            self.leave()
            return
        self.main.talk.typed(event.text)
        self.ask(event.text)

    def on_ask_line_commanded(self, event: AskLine.Commanded) -> None:
        self.command(event.text)

    def command(self, line: str) -> None:
        """Run a `:` line."""
        self.main.talk.typed(line)
        command, rest = commands.find(line, readonly=self.readonly)
        if command is None:
            self.main.talk.said(rest, "warn")
        elif command.action:
            self.call_later(self.run_action, command.action)
        else:
            try:
                self.submit(commands.intent_of(command, rest), f"{command.name} {rest}".strip())
            except BrunoError as error:
                self.main.talk.said(f"✘ {safe_line(str(error), 500)}", "bad")

    # Keys

    @property
    def confirming(self) -> bool:
        """Whether a confirmation is open."""
        return any(type(screen).__name__ == "ConfirmScreen" for screen in self.screen_stack)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a confirmation is open nothing of the app answers but leaving; a read-only console hides what acts."""
        if self.confirming and action not in _WHILE_CONFIRMING:
            return False
        if self.readonly and action in _ACTING:
            return False
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        for command in commands.available(readonly=self.readonly):
            if command.argument:
                yield SystemCommand(f":{command.name}", command.about, lambda c=command: self._begin(c.name))
            else:
                yield SystemCommand(f":{command.name}", command.about, lambda c=command: self.command(f":{c.name}"))

    def _begin(self, name: str) -> None:
        """Put a command that takes an argument into the line, to be finished there."""
        self.action_command_line(f":{name} ")

    def action_help(self) -> None:
        from bruno.tui.help import HelpScreen

        self.push_screen(HelpScreen(self.user_keys, readonly=self.readonly))

    def action_pane(self, name: str) -> None:
        self.main.show_pane(name, focus=name != "talk")
        if name == "talk":
            self.main.ask.focus()  # to talk is to type

    def action_command_line(self, start: str) -> None:
        line = self.main.ask
        line.focus()
        line.value = start
        line.cursor_position = len(start)

    def action_next_run(self, by: int) -> None:
        self.main.run_pane.step(by)
        self.main.log_pane.show(self.main.run_pane.chosen)

    def action_refresh_now(self) -> None:
        if self._poller is not None:
            self.run_worker(self._read(fresh=True), group="refresh", exclusive=True, exit_on_error=False)

    def action_pause_log(self) -> None:
        self.main.log_pane.pause()

    def action_clear_talk(self) -> None:
        self.main.talk.empty()

    def action_act_on_instance(self, what: str) -> None:
        """Ask for a stop or a destroy of the instance under the cursor; its plan and the word come next."""
        from bruno.intents import DestroyInstance, StopInstance

        instance = self.main.instances.current
        if instance is None:
            return
        target = str(instance.instance_id)
        intent = StopInstance(target=target) if what == "stop" else DestroyInstance(target=target)
        self.main.talk.typed(f"{what} {target}")
        self.submit(intent, f"{what} {target}")

    def action_copy_ssh(self) -> None:
        instance = self.main.instances.current
        if instance is not None and instance.ssh:
            self.copy_to_clipboard(safe_line(instance.ssh))
            self.notify(f"copied {safe_line(instance.ssh)}", markup=False)

    # Leaving

    async def action_quit(self) -> None:
        self.leave()

    def leave(self, *, talk_to: tuple[str, str | None] | None = None) -> None:
        """Leave at once. Nothing is stopped; what goes on and what it costs is said on the terminal."""
        self.let_go()
        left = words.left_running(self.snapshot.runs, self.snapshot.instances, sandbox=self.sandbox)
        self.exit(Leave(lines=left, talk=talk_to))
