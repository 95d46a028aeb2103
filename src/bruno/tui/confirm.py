"""The confirmation: a plan card, one line to type the word into, nothing else. One of two files that make a permit.

It is drawn from the card alone. Keys that were on their way when it opened, and everything pasted, are dropped; there is no
button and no binding with priority that a stray key could reach; anything but the exact word ends it with nothing done.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual._time import get_time
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, Static

from bruno.errors import BrunoError, NotConfirmed
from bruno.guard.permit import Origin, Permit, mint
from bruno.guard.sanitise import safe_line
from bruno.operator.card import lines
from bruno.tui.modal import Modal

if TYPE_CHECKING:
    from bruno.operator.views import Card

ARM_SECONDS = 0.4
"""How long the card has to be on the screen before a key counts."""
WIDEST = 120
AROUND_THE_CARD = (8, 8)
"""Columns and rows that borders, scroll bar, question and line take."""


class GateInput(Input):
    """A line that takes only keys pressed by a person who could already see it."""

    def __init__(self, arm_seconds: float) -> None:
        super().__init__(placeholder="", id="gate", select_on_focus=False)
        self._arm_seconds = arm_seconds
        self.armed_at = float("inf")

    def on_mount(self) -> None:
        self.armed_at = get_time() + self._arm_seconds  # the clock that events are stamped with

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Paste) or (isinstance(event, events.Key) and event.time < self.armed_at):
            event.stop()
            event.prevent_default()
            return
        await super().on_event(event)

    async def action_submit(self) -> None:
        if get_time() >= self.armed_at:
            await super().action_submit()

    def action_paste(self) -> None:
        """Nothing: the word is typed."""


class ConfirmScreen(Modal[Permit | BrunoError]):
    """Ends with a permit, or with the error that says why there is none."""

    CSS_PATH = "confirm.tcss"
    AUTO_FOCUS = "#gate"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("pageup", "scroll_card(-1)", "Up", show=False),
        Binding("pagedown", "scroll_card(1)", "Down", show=False),
    ]

    def __init__(self, card: Card, clock: Callable[[], datetime], arm_seconds: float = ARM_SECONDS) -> None:
        super().__init__()
        self._card = card
        self._clock = clock
        self._arm_seconds = arm_seconds

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "Your word is needed"
            box.border_subtitle = "esc cancels, page up and down scroll"
            with VerticalScroll(id="card", can_focus=False):
                yield Static(self._text(), id="lines", markup=False)
            yield Static(self._question(), id="question", markup=False)
            yield GateInput(self._arm_seconds)

    def _question(self) -> str:
        word = safe_line(self._card.decision.word)
        until = self._card.plan.expires_at.astimezone().strftime("%H:%M")
        return f"Type {word} and press Enter. This plan holds until {until}."

    def _text(self) -> str:
        return "\n".join(lines(self._card, max(30, min(self.app.size.width, WIDEST) - AROUND_THE_CARD[0])))

    def on_resize(self) -> None:
        """The card is drawn to the width there is, and scrolls: the question and the line below it are always on the screen."""
        self.query_one("#lines", Static).update(self._text())
        self.query_one("#card").styles.max_height = max(3, self.app.size.height - AROUND_THE_CARD[1])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self.answered or not event.value.strip():
            return  # an empty Enter is no answer
        try:
            permit = mint(self._card.plan, self._card.decision, event.value, origin=Origin.KEYBOARD, now=self._clock())
        except BrunoError as error:
            self.close(error)
        else:
            self.close(permit)

    def action_cancel(self) -> None:
        self.close(NotConfirmed("cancelled, nothing was done"))

    def action_scroll_card(self, pages: int) -> None:
        card = self.query_one("#card", VerticalScroll)
        card.scroll_relative(y=pages * max(1, card.size.height - 1), animate=False)
