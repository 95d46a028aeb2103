"""The one screen: all panes beside each other when there is room, one at a time below tabs when there is not."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Log, Tab, Tabs

from bruno.tui.ask_line import AskLine
from bruno.tui.conversation import Conversation
from bruno.tui.instances_pane import InstancesPane
from bruno.tui.log_pane import LogPane
from bruno.tui.poller import Snapshot
from bruno.tui.run_pane import RunPane
from bruno.tui.status_bar import StatusBar

PANES = {"talk": "Talk", "run": "Run", "instances": "Instances", "log": "Log"}


class MainScreen(Screen[None]):
    """Lays out the panes and hands each of them the snapshot."""

    AUTO_FOCUS = "#ask"
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (116, "-wide")]

    def __init__(self, *, sandbox: bool, readonly: bool) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._readonly = readonly
        self.shown_pane = "talk"

    def compose(self) -> ComposeResult:
        yield StatusBar(sandbox=self._sandbox, readonly=self._readonly)
        yield Tabs(*(Tab(title, id=f"tab-{name}") for name, title in PANES.items()), id="tabs")
        with Horizontal(id="body"):
            yield Conversation(sandbox=self._sandbox, readonly=self._readonly)
            with Vertical(id="side"):
                yield RunPane()
                yield InstancesPane()
                yield LogPane()
        yield AskLine(readonly=self._readonly)
        yield Footer(show_command_palette=True, compact=True)

    def on_mount(self) -> None:
        self.query_one("#tabs").can_focus = False  # the keys F2 to F5 and the mouse choose; tab goes through the panes
        self.add_class("-show-talk")

    @property
    def talk(self) -> Conversation:
        return self.query_one(Conversation)

    @property
    def run_pane(self) -> RunPane:
        return self.query_one(RunPane)

    @property
    def instances(self) -> InstancesPane:
        return self.query_one(InstancesPane)

    @property
    def log_pane(self) -> LogPane:
        return self.query_one(LogPane)

    @property
    def ask(self) -> AskLine:
        return self.query_one(AskLine)

    def show(self, snapshot: Snapshot) -> None:
        """Hand a snapshot to every view; to none once the console is closing and they go one by one."""
        if not all(self.query(each) for each in (StatusBar, RunPane, InstancesPane, LogPane)):
            return
        self.query_one(StatusBar).show(snapshot)
        self.run_pane.show(snapshot)
        self.instances.show(snapshot)
        self.log_pane.show(self.run_pane.chosen)

    def show_pane(self, name: str, *, focus: bool = True) -> None:
        """Bring a pane to the front (narrow) and give it the keys (`focus`)."""
        self.shown_pane = name
        for each in PANES:
            self.set_class(each == name, f"-show-{each}")
        self.query_one("#tabs", Tabs).active = f"tab-{name}"
        if focus:
            self.focus_pane()

    def focus_pane(self) -> None:
        """Give the keys to the pane that is shown."""
        target = {"instances": DataTable, "log": Log}.get(self.shown_pane)
        pane = self.query_one(f"#{self.shown_pane}")
        (pane.query_one(target) if target else pane).focus()

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        name = (event.tab.id or "").removeprefix("tab-")
        if name != self.shown_pane:
            self.show_pane(name)

    def on_ask_line_filtered(self, event: AskLine.Filtered) -> None:
        self.log_pane.filter(event.text)
        self.instances.filter(event.text)
        if not event.done:
            return
        if not event.text:
            self.ask.focus()
        elif self.shown_pane in ("talk", "run"):  # neither is filtered: what was looked for is in the log
            self.show_pane("log")
        else:
            self.focus_pane()

    def on_ask_line_paged(self, event: AskLine.Paged) -> None:
        self.talk.page(event.pages)

    def on_ask_line_left(self) -> None:
        self.focus_pane()
