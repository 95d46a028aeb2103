"""The line that is typed into: a sentence, `:command`, or `/filter`. Brings back what was typed before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input

from bruno.tui.commands import available

MOST_HISTORY = 200


class AskLine(Input):
    """Sends Said, Commanded and Filtered; knows nothing of what they lead to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "history(-1)", "Earlier", show=False),
        Binding("down", "history(1)", "Later", show=False),
        Binding("pageup", "page(-1)", "Earlier answers", show=False),
        Binding("pagedown", "page(1)", "Later answers", show=False),
        Binding("escape", "leave", "Leave the line", show=False),
    ]

    @dataclass
    class Said(Message):
        """A sentence was entered."""

        text: str

    @dataclass
    class Commanded(Message):
        """A line with `:` was entered."""

        text: str

    @dataclass
    class Filtered(Message):
        """The filter changed; "" shows everything. `done`: it was entered, or given up."""

        text: str
        done: bool = False

    @dataclass
    class Paged(Message):
        """The conversation wants to be scrolled by so many pages."""

        pages: int

    class Left(Message):
        """Escape in a line without a filter: the focus wants to go to a pane."""

    def __init__(self, *, readonly: bool) -> None:
        names = [f":{command.name}" for command in available(readonly=readonly)]
        super().__init__(
            id="ask",
            placeholder="what do you want?   :command   /filter   ? help   ctrl+q quit",
            suggester=SuggestFromList(names, case_sensitive=True),
            select_on_focus=False,
        )
        self._history: list[str] = []
        self._back = 0

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """An empty line lets `?` through to help."""
        return not (character == "?" and not self.value) and super().check_consume_key(key, character)

    async def _on_key(self, event: events.Key) -> None:
        if event.character == "?" and not self.value:
            event.stop()
            event.prevent_default()  # or Input's own handler would type it
            await self.run_action("app.help")

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if event.value.startswith("/"):
            self.post_message(self.Filtered(event.value[1:]))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        self.clear()
        self._back = 0
        if not text:
            return
        self._history = [*(line for line in self._history if line != text), text][-MOST_HISTORY:]
        if text.startswith("/"):
            self.post_message(self.Filtered(text[1:], done=True))
        elif text.startswith(":"):
            self.post_message(self.Commanded(text))
        else:
            self.post_message(self.Said(text))

    def action_history(self, step: int) -> None:
        """Back and forth through what was entered; past the newest is the empty line."""
        self._back = min(max(self._back - step, 0), len(self._history))
        self.value = self._history[-self._back] if self._back else ""
        self.cursor_position = len(self.value)

    def action_page(self, pages: int) -> None:
        self.post_message(self.Paged(pages))

    def action_leave(self) -> None:
        if self.value.startswith("/"):
            self.clear()
            self.post_message(self.Filtered("", done=True))
        else:
            self.post_message(self.Left())
