"""From a reply to its end: ask for a letter, show a card, ask for the word, act, follow. The one way every command ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bruno.cli.confirm import choose_letter, confirm_at_terminal, confirm_by_plan_id
from bruno.cli.follow import follow
from bruno.cli.show import Output
from bruno.errors import Denied, InputError, NotConfirmed, Unreachable
from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin

if TYPE_CHECKING:
    from bruno.guard.permit import Permit
    from bruno.operator.service import Operator
    from bruno.operator.views import Ask, Card, Reply


class Conclusion:
    """Takes replies of one operator to their end.

    Args:
        operator: the service. output: where things are said.
        readonly: show everything, act on nothing.
        go_on: follow a run to its end (else leave once it is launched).
    """

    def __init__(self, operator: Operator, output: Output, *, readonly: bool = False, go_on: bool = True) -> None:
        self._operator = operator
        self._output = output
        self._readonly = readonly
        self._go_on = go_on

    def of(self, reply: Reply) -> int:
        """Show a reply and do what it leads to; answers the exit code.

        Raises:
            Denied: the guard said no. NotConfirmed: the word or the letter was not given.
        """
        allowed = reply.kind == "card" and reply.decision.verdict is Verdict.ALLOW
        if not allowed or self._output.as_json:  # what is allowed is carried out at once, and says itself what it does
            self._output.reply(reply)
        match reply.kind:
            case "answer":
                return (reply.exit_code or 1) if reply.failed else 0
            case "instances":
                return 0 if reply.view.known else Unreachable.exit_code
            case "ask":
                return self.of(self._choose(reply))
            case "card":
                return self._card(reply)
            case "talk":
                return self._talk(reply.model, reply.beside)
            case "watch":
                return self.watch(reply.run_id, retry=reply.retry)
            case _:
                return 0

    def by_plan_id(self, card: Card, plan_id: str) -> int:
        """Carry out a saved plan whose id a script repeated."""
        self._output.reply(card)
        self._check(card)
        permit = confirm_by_plan_id(card, plan_id) if card.decision.verdict is Verdict.CONFIRM else None
        return self._act(card, permit)

    def watch(self, run_id: str, *, retry: bool = False) -> int:
        """Take up a run where its records leave it, and follow it."""
        if self._readonly:
            self._output.run(self._operator.run(run_id))
            return 0
        return follow(
            lambda on_event, cancel: self._operator.carry_on(run_id, on_event=on_event, cancel=cancel, retry=retry),
            operator=self._operator,
            run_id=run_id,
            output=self._output,
        ).exit_code

    def _choose(self, ask: Ask) -> Reply:
        letter = choose_letter(ask.clarification)
        return self._operator.choose(ask.clarification, letter, origin=Origin.COMMAND_LINE)

    def _card(self, card: Card) -> int:
        self._check(card)
        if card.decision.verdict is Verdict.ALLOW:
            return self._act(card, None)
        shown = self._output.on_terminal and not self._output.as_json
        return self._act(card, confirm_at_terminal(card, card_is_shown=shown))

    def _check(self, card: Card) -> None:
        if card.decision.verdict is Verdict.DENY:
            denying = [hit for hit in card.decision.hits if hit.verdict is Verdict.DENY]
            raise Denied(
                "; ".join(hit.reason for hit in denying) or "the guard said no", fix=denying[0].fix if denying else ""
            )
        if card.decision.verdict is Verdict.CLARIFY:
            raise NotConfirmed("this has two meanings, nothing was done", fix="Say which one in the sentence itself")
        if self._readonly and card.decision.verdict is not Verdict.ALLOW:
            raise Denied("--readonly was given, nothing was done", fix="Leave --readonly out to act")

    def _act(self, card: Card, permit: Permit | None) -> int:
        return follow(
            lambda on_event, cancel: self._operator.act(
                card, permit, on_event=on_event, follow=self._go_on, cancel=cancel
            ),
            operator=self._operator,
            run_id=None if card.is_shell_line else card.plan.run_id,
            output=self._output,
        ).exit_code

    def _talk(self, model: str, beside: str | None) -> int:
        from bruno.cli.engine import chat

        if self._output.as_json:
            raise InputError("a conversation has no JSON form", fix=f"bruno chat {model}")
        return chat(model, beside)
