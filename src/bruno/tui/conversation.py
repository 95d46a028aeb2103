"""What was typed, what was answered, what happened. Everything is drawn with markup off."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from bruno.guard.sanitise import safe, safe_line

if TYPE_CHECKING:
    from bruno.operator.views import Card

MOST_ENTRIES = 400
"""Older entries leave the screen; runs and their logs keep what matters."""
WELCOME = """\
{money}
Say what you want in a sentence, for example
  start demo on an H200
  how is it going
  what does it cost
  stop it
What costs money or cannot be undone first shows its plan and waits for your yes.
"""
SANDBOX = "The sandbox: Vast.ai is emulated on this machine. Nothing here costs real money."
REAL = "This console rents real machines with your Vast.ai credit. To try it for nothing: bruno --sandbox"
READONLY = "Read-only: everything is shown, nothing is acted on."
_GLYPHS = {"info": "·", "good": "✔", "warn": "!", "bad": "✘"}


class Conversation(VerticalScroll):
    """A growing list of entries that stays at its end unless it was scrolled up."""

    def __init__(self, *, sandbox: bool = False, readonly: bool = False) -> None:
        super().__init__(id="talk")
        self.border_title = "bruno"
        self._money = SANDBOX if sandbox else REAL
        if readonly:
            self._money = f"{self._money}\n{READONLY}"

    def compose(self) -> ComposeResult:
        """What a stranger needs before the first word; it scrolls away like everything else."""
        yield Static(WELCOME.format(money=self._money), classes="entry welcome", markup=False)

    def on_mount(self) -> None:
        self.anchor()

    def typed(self, text: str) -> None:
        """What the person said."""
        self._add(f"› {safe(text)}", "typed")

    def said(self, text: str, level: str = "info") -> None:
        """An answer or a notice; `level` as in a Happening."""
        self._add(safe(text), level)

    def waiting(self, text: str) -> Static:
        """A line that whoever waits takes away again."""
        return self._add(f"… {safe(text)}", "waiting")

    def happened(self, at: datetime, level: str, text: str) -> None:
        """Something that happened, with its time and a glyph."""
        self._add(f"{at.astimezone():%H:%M:%S} {_GLYPHS.get(level, '·')} {safe_line(text, 1_000)}", level)

    def printed(self, lines: Sequence[str]) -> None:
        """What a shell line printed, as it was printed."""
        if lines:
            self._add(safe("\n".join(lines)), "output")

    def card(self, card: Card) -> None:
        """A plan that was shown: kept, so that it can be read again."""
        from bruno.operator.card import lines

        width = max(40, (self.size.width or 80) - 8)  # its border and padding
        entry = self._add("\n".join(lines(card, width)), "card")
        entry.border_title = f"plan {card.plan.plan_id[:12]}"

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns as text, as wide as their widest cell."""
        cells = [tuple(heads), *(tuple(safe_line(cell) for cell in row) for row in rows)]
        widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(len(heads))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in cells)
        self._add("\n".join(line.rstrip() for line in lines), "table")

    def page(self, pages: int) -> None:
        """Scroll by whole pages; back at the end it follows again."""
        self.scroll_relative(y=pages * max(1, self.size.height - 1), animate=False)

    def empty(self) -> None:
        self.remove_children()

    def _add(self, text: str, kind: str) -> Static:
        entry = Static(text, classes=f"entry {kind}", markup=False)
        self.mount(entry)
        if len(self.children) > MOST_ENTRIES:
            self.children[0].remove()
        return entry
