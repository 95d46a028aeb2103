"""How replies look on a plain terminal and as JSON. The only file of the command line that writes to stdout for a command.

JSON is one object a line when things happen over time, and one object otherwise; every object has a `kind`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from bruno.guard.sanitise import safe, safe_line
from bruno.settings.secrets import redact
from bruno.tui import words

if TYPE_CHECKING:
    from bruno.operator.views import Answer, Ask, Card, Happening, InstancesView, OfferView, Reply, RunView

_MARKS = {"output": " ", "quiet": " ", "info": " ", "good": "✔", "warn": "!", "bad": "✘"}


class Output:
    """Everything a command says.

    Args:
        as_json: objects instead of lines.
        aside: bruno's own words go to stderr, so that stdout carries what a shell line printed and nothing else.
    """

    def __init__(self, *, as_json: bool = False, aside: bool = False) -> None:
        self.as_json = as_json
        self._aside = aside and not as_json

    @property
    def on_terminal(self) -> bool:
        return (sys.stderr if self._aside else sys.stdout).isatty()

    def line(self, text: str = "") -> None:
        _write(sys.stderr if self._aside else sys.stdout, text)

    def json(self, value: dict[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=False)
        # JSON escapes C0 alone: a C1 control (a terminal's CSI in one character) or a bidirectional mark would reach the screen.
        self.line(text if text.isprintable() else json.dumps(value))

    def notice(self, text: str) -> None:
        """Words about bruno itself; on stderr when stdout carries JSON."""
        if self.as_json:
            sys.stderr.write(redact(text) + "\n")
        else:
            self.line(text)

    def reply(self, reply: Reply) -> None:
        """A reply that needs no answer of its own: words, tables, a card, a question."""
        if self.as_json:
            return self.json(card_json(reply) if reply.kind == "card" else reply.model_dump(mode="json"))
        match reply.kind:
            case "answer":
                self._answer(reply)
            case "ask":
                self._ask(reply)
            case "card":
                self._card(reply)
            case "progress":
                self.runs(reply.runs)
            case "instances":
                self._instances(reply.view)
            case "offers":
                self._offers(reply.rows)
            case _:
                pass  # talk and watch are acted on, not shown
        return None

    def happening(self, happening: Happening) -> None:
        if self.as_json:
            self.json({"kind": "happening", **happening.model_dump(mode="json")})
        elif happening.level == "output":
            _write(sys.stderr if happening.stream == "stderr" else sys.stdout, safe(happening.text))
        else:
            stamp = happening.at.astimezone().strftime("%H:%M:%S")
            self.line(f"{stamp} {_MARKS[happening.level]} {safe_line(happening.text, 1_000)}")

    def run(self, run: RunView) -> None:
        if self.as_json:
            self.json({"kind": "run", **run.model_dump(mode="json")})
        else:
            self.line(words.run_line(run))

    def runs(self, runs: Sequence[RunView]) -> None:
        if not runs:
            self.line('no run yet. Start one: bruno do "start demo on an H200" --sandbox')
        for run in runs:
            self.line(words.run_line(run))
            for worker in words.worker_lines(run):
                self.line(f"  {worker}")
            for note in words.run_notes(run):
                self.line(f"  {note}")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their widest cell; two blanks between."""
        cells = [tuple(heads), *(tuple(row) for row in rows)]
        widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(len(heads))]
        for row in cells:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())

    def _answer(self, answer: Answer) -> None:
        if answer.text and not (self._aside and answer.exit_code == 0):
            self.line(safe(answer.text))
        if answer.rows:
            self.table(answer.rows[0], [[safe_line(cell) for cell in row] for row in answer.rows[1:]])
        for suggestion in answer.suggestions:
            self.line(f"  {safe_line(suggestion)}")

    def _ask(self, ask: Ask) -> None:
        self.line(safe(ask.clarification.question))
        for option in ask.clarification.options:
            self.line(f"  {option.letter}) {safe_line(option.text, 500)}")
            self.line(f"     {safe_line(option.consequence, 500)}")

    def _card(self, card: Card) -> None:
        self.line("\n".join(card_lines(card)))

    def _instances(self, view: InstancesView) -> None:
        if not view.known:
            self.line(f"the provider's list is unknown: {safe_line(view.problem or 'it could not be read', 500)}")
        elif not view.rows:
            self.line("no instance is rented")
        else:
            self.table(words.INSTANCE_HEADS, [words.instance_row(row) for row in view.rows])
        if view.credit is not None:
            self.line(f"credit {words.money(view.credit)}, now {words.spending(view)}")

    def _offers(self, rows: Sequence[OfferView]) -> None:
        if rows:
            self.table(words.OFFER_HEADS, [words.offer_row(row) for row in rows])
        else:
            self.line("no offer meets these wishes now")


def _write(stream: TextIO, text: str) -> None:
    stream.write(redact(text) + "\n")
    stream.flush()


def card_json(card: Card) -> dict[str, Any]:
    """A card as JSON, with the id that `bruno do --confirm` takes and the lines a person would read."""
    return {"plan_id": card.plan.plan_id, **card.model_dump(mode="json"), "lines": list(card_lines(card))}


def card_lines(card: Card) -> tuple[str, ...]:
    """The card as wide as the terminal, up to what can be read well."""
    from bruno.operator.card import lines

    return lines(card, min(shutil.get_terminal_size((80, 24)).columns - 1, 100))
