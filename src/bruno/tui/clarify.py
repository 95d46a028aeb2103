"""Words with two meanings: the readings with their letters and consequences. No default; Enter chooses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual._time import get_time
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from bruno.guard.sanitise import safe, safe_line
from bruno.tui.confirm import ARM_SECONDS
from bruno.tui.modal import Modal

if TYPE_CHECKING:
    from bruno.intents import Clarification


class ClarifyScreen(Modal["str | None"]):
    """Ends with the letter that was pressed, or None."""

    CSS_PATH = "clarify.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", show=False)]

    def __init__(self, clarification: Clarification, arm_seconds: float = ARM_SECONDS) -> None:
        super().__init__()
        self._clarification = clarification
        self._arm_seconds = arm_seconds
        self._armed_at = float("inf")

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="box", can_focus=False) as box:
            box.border_title = "Which one?"
            box.border_subtitle = "press a letter; esc cancels"
            yield Static(safe(self._clarification.question), id="question", markup=False)
            for option in self._clarification.options:
                yield Static(f"{option.letter}  {safe_line(option.text, 500)}", classes="option", markup=False)
                yield Static(f"   {safe_line(option.consequence, 500)}", classes="consequence", markup=False)

    def on_mount(self) -> None:
        self._armed_at = get_time() + self._arm_seconds

    def on_key(self, event: events.Key) -> None:
        letter = (event.character or "").upper()
        if event.time >= self._armed_at and letter in {option.letter for option in self._clarification.options}:
            event.stop()
            self.close(letter)

    def action_cancel(self) -> None:
        self.close(None)
