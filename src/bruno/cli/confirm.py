"""Where the command line makes a permit: the word typed at the terminal, or a plan id repeated by a script.

One of exactly two files that call `mint`; the other is the console's confirm box.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bruno.cli.show import card_lines
from bruno.cli.terminal import Terminal, terminal
from bruno.errors import NotConfirmed
from bruno.guard.permit import Origin, Permit, mint

if TYPE_CHECKING:
    from bruno.intents import Clarification
    from bruno.operator.views import Card

SCRIPT_HINT = "Scripts: bruno plan ... --json, then bruno do --confirm PLAN_ID"


def confirm_at_terminal(card: Card, *, card_is_shown: bool) -> Permit:
    """Ask for the card's word on the controlling terminal.

    Args:
        card: the plan and the decision.
        card_is_shown: False when stdout is no terminal: the card is then drawn on the terminal first.

    Raises:
        NotConfirmed: nobody can be asked, or something else was typed.
    """
    with terminal(f"this needs {card.decision.word!r} typed at a terminal", SCRIPT_HINT) as person:
        if not card_is_shown:
            person.show("\n".join(card_lines(card)))
        typed = person.ask(f"{card.decision.word}? ")
        return mint(card.plan, card.decision, typed, origin=Origin.COMMAND_LINE, now=datetime.now(UTC))


def confirm_by_plan_id(card: Card, plan_id: str) -> Permit:
    """A script's confirmation: the whole id that a separate `bruno plan` printed.

    Raises:
        NotConfirmed: another id, or the plan has expired.
        Denied: the guard did not ask for a confirmation.
    """
    return mint(card.plan, card.decision, plan_id, origin=Origin.SCRIPT, now=datetime.now(UTC))


def choose_letter(clarification: Clarification) -> str:
    """Ask for one of the letters; there is no default.

    Raises:
        NotConfirmed: nobody can be asked, or no letter was given in three tries.
    """
    letters = [option.letter for option in clarification.options]
    with terminal("this has two meanings", "Say which one in the sentence itself") as person:
        return _letter(person, letters)


def _letter(person: Terminal, letters: list[str]) -> str:
    for _ in range(3):
        typed = person.ask(f"Which one? {' or '.join(letters)}: ").strip().upper()
        if typed in letters:
            return typed
        if not typed:
            break
    raise NotConfirmed("no letter was chosen, nothing was done")
