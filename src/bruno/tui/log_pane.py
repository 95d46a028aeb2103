"""The engine's log of the run that is shown: followed, filtered, paused. Text from a machine, so sanitised and never markup."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Log, Static

from bruno.guard.sanitise import safe_line

if TYPE_CHECKING:
    from bruno.operator.views import RunView

MOST_LINES = 5_000


class LogPane(Vertical):
    """Appends what is new in a run's log tail, in one write per snapshot."""

    def __init__(self) -> None:
        super().__init__(id="log")
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._tail: tuple[str, ...] = ()
        self._run: str | None = None
        self._name = ""
        self._filter = ""

    def compose(self) -> ComposeResult:
        yield Static("", id="log-note", markup=False)
        yield Log(max_lines=MOST_LINES)

    def on_mount(self) -> None:
        self._title()

    @property
    def log_widget(self) -> Log:
        return self.query_one(Log)

    def show(self, run: RunView | None) -> None:
        """Follow this run's log; another run starts an empty one."""
        run_id = run.run_id if run else None
        if run_id != self._run:
            self._run, self._name, self._tail = run_id, safe_line(run.name) if run else "", ()
            self._lines.clear()
            self.log_widget.clear()
            self._title()
        if run is None or run.log_tail == self._tail:
            return
        fresh = [safe_line(line, 2_000) for line in new_lines(self._tail, run.log_tail)]
        self._tail = run.log_tail
        self._lines.extend(fresh)
        self._write(fresh)

    def filter(self, text: str) -> None:
        """Show only lines that contain `text`, of those kept and those to come."""
        self._filter = text.casefold()
        self.log_widget.clear()
        self._write(self._lines)

    def pause(self) -> bool:
        """Stop or go on moving to the newest line; answers whether it is paused now."""
        self.log_widget.auto_scroll = not self.log_widget.auto_scroll
        self._title()
        return not self.log_widget.auto_scroll

    def _write(self, lines: Sequence[str] | deque[str]) -> None:
        shown = [line for line in lines if self._filter in line.casefold()]
        if shown:
            self.log_widget.write_lines(shown)
        self._title()

    def _title(self) -> None:
        title = f"log {self._name}".rstrip()
        if self._filter:
            matching = sum(self._filter in line.casefold() for line in self._lines)
            title += f"  /{safe_line(self._filter, 40)}: {matching} of {len(self._lines)} lines"
        if not self.log_widget.auto_scroll:
            title += "  PAUSED"
        self.border_title = Content(title)  # a plain string would be read as markup
        note = self.query_one("#log-note", Static)
        note.display = not self._lines
        note.update(" nothing of its log was read yet" if self._run else " no run yet: its log is followed here")


def new_lines(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """What follows `old` in `new`, both tails of one growing log.

    The longest end of `old` that `new` begins with is what was seen already. Where they share nothing the gap is said.
    """
    for length in range(min(len(old), len(new)), 0, -1):
        if old[-length:] == new[:length]:
            return new[length:]
    return ("… (lines in between were not read)", *new) if old else new
