"""From a reply to its end, in the console: a letter, a card, the word, the act. Mixed into the app, which owns the workers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from textual.app import App
from textual.widgets import Static

from bruno.errors import BrunoError
from bruno.guard.sanitise import safe_line
from bruno.tui import words
from bruno.tui.leave import Leave
from bruno.tui.threads import in_thread

if TYPE_CHECKING:
    from bruno.guard.permit import Permit
    from bruno.intents import Intent
    from bruno.operator.service import Operator
    from bruno.operator.views import Answer, Ask, Card, Happening, Reply, RunView
    from bruno.tui.main_screen import MainScreen


STILL_ASKING = "still asking: the provider, the hub or a machine has not answered yet"


class Replies(App[Leave]):
    """What happens between a sentence and its end. Every call of the service is awaited from a daemon thread."""

    main: MainScreen
    clock: Callable[[], datetime]
    readonly: bool

    def __init__(self) -> None:
        super().__init__()
        self.happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._cancels: dict[str, threading.Event] = {}
        self._followed: dict[str, str] = {}  # plan id -> the run that carrying it out follows
        self._one_question = asyncio.Lock()

    async def operator_when_open(self) -> Operator:
        """The service; waits until it is open."""
        raise NotImplementedError

    def leave(self, *, talk_to: tuple[str, str | None] | None = None) -> None:
        """Leave the console."""
        raise NotImplementedError

    # Workers are coroutines of the app: they outlive every widget. Groups are named, so that none cancels another.

    def ask(self, text: str) -> None:
        """Take a sentence to its end."""
        from bruno.guard.permit import Origin

        async def work() -> None:
            operator = await self.operator_when_open()
            await self._conclude(await self._asked(lambda: operator.ask(text, origin=Origin.KEYBOARD)))

        self._start(work, "ask")

    def submit(self, intent: Intent, text: str) -> None:
        """Take an intent (a key, a command) to its end."""
        from bruno.guard.permit import Origin

        async def work() -> None:
            operator = await self.operator_when_open()
            await self._conclude(await self._asked(lambda: operator.submit(intent, origin=Origin.KEYBOARD, words=text)))

        self._start(work, "ask")

    async def _asked(self, call: Callable[[], Reply]) -> Reply:
        """The service's reply; a line says so while it takes long (a provider or a machine that does not answer)."""
        said: list[Static] = []
        patience = self.set_timer(self.patience, lambda: said.append(self.main.talk.waiting(STILL_ASKING)))
        try:
            return await in_thread(call)
        finally:
            patience.stop()
            for line in said:
                await line.remove()

    def carry_on(self, run: RunView) -> None:
        """Take up an unfinished run."""
        self._follow(
            run.run_id,
            lambda operator, cancel: operator.carry_on(run.run_id, on_event=self.happenings.put, cancel=cancel),
        )

    def let_go(self) -> None:
        """Ask everything under way to detach. Nothing is waited for."""
        for cancel in self._cancels.values():
            cancel.set()

    @property
    def busy(self) -> bool:
        """Whether something is being carried out or followed here."""
        return bool(self._cancels)

    def _start(self, work: Callable, group: str) -> None:
        async def guarded() -> None:
            try:
                await work()
            except BrunoError as error:
                self.main.talk.said(f"✘ {safe_line(str(error), 2_000)}", "bad")
            except Exception as error:  # noqa: BLE001 - a defect must not end the console under a running follow
                self.main.talk.said(f"✘ {self.write_down(error)}", "bad")

        self.run_worker(guarded(), group=group, exit_on_error=False)

    def draw_happenings(self) -> None:
        """Say what happened since the last time."""
        raise NotImplementedError

    def write_down(self, error: Exception) -> str:
        """Put a traceback into the log file; the words that say so."""
        raise NotImplementedError

    async def _conclude(self, reply: Reply) -> None:
        match reply.kind:
            case "answer":
                self._answer(reply)
            case "ask":
                await self._choose(reply)
            case "card":
                await self._card(reply)
            case "progress":
                self._progress(reply.runs)
            case "instances":
                self.main.show_pane("instances", focus=False)
                self.action_refresh_now()
            case "offers":
                self.main.talk.table(words.OFFER_HEADS, [words.offer_row(row) for row in reply.rows])
            case "talk":
                self.leave(talk_to=(reply.model, reply.beside))
            case "watch":
                self._watch(reply.run_id, retry=reply.retry)

    def action_refresh_now(self) -> None:
        """Read everything again now."""
        raise NotImplementedError

    def _answer(self, answer: Answer) -> None:
        talk = self.main.talk
        if answer.text:
            talk.said(answer.text, "bad" if answer.failed else "info")
        if answer.rows:
            talk.table(answer.rows[0], answer.rows[1:])
        for suggestion in answer.suggestions:
            talk.said(f"  {suggestion}")

    def _progress(self, runs: tuple[RunView, ...]) -> None:
        if not runs:
            self.main.talk.said("no run yet")
        for run in runs:
            self.main.talk.said("\n  ".join((words.run_line(run), *words.worker_lines(run), *words.run_notes(run))))
        if len(runs) == 1:
            self.main.run_pane.choose(runs[0].run_id)

    async def _choose(self, reply: Ask) -> None:
        from bruno.guard.permit import Origin
        from bruno.tui.clarify import ClarifyScreen

        clarification = reply.clarification
        async with self._one_question:
            letter = await self.push_screen_wait(ClarifyScreen(clarification, self.arm_seconds))
        if letter is None:
            self.main.talk.said("no letter was chosen, nothing was done")
            return
        self.main.talk.typed(f"{letter}  {next(each.text for each in clarification.options if each.letter == letter)}")
        operator = await self.operator_when_open()
        await self._conclude(await self._asked(lambda: operator.choose(clarification, letter, origin=Origin.KEYBOARD)))

    patience = 1.5
    """Seconds without a reply before that is said; tests set it."""
    arm_seconds = 0.4
    """How long a question has to be on the screen before a key answers it; tests set it."""

    async def _card(self, card: Card) -> None:
        from bruno.guard.decision import Verdict

        allowed = card.decision.verdict is Verdict.ALLOW
        if not allowed:
            self.main.talk.card(card)
        if not allowed and (self.readonly or card.decision.verdict is not Verdict.CONFIRM):
            if self.readonly:
                self.main.talk.said("this console is read-only, nothing was done", "warn")
            return
        permit = None
        if card.decision.verdict is Verdict.CONFIRM:
            permit = await self._confirm(card)
            if permit is None:
                return
        # Keyed by the plan: stopping the instance of a run that is being followed is no second following of it.
        self._follow(
            card.plan.plan_id,
            lambda operator, cancel: operator.act(card, permit, on_event=self.happenings.put, cancel=cancel),
            run_id=card.plan.run_id if _follows_a_run(card) else None,
        )

    async def _confirm(self, card: Card) -> Permit | None:
        from bruno.tui.confirm import ConfirmScreen

        async with self._one_question:
            answer = await self.push_screen_wait(ConfirmScreen(card, self.clock, self.arm_seconds))
        if isinstance(answer, BrunoError):
            self.main.talk.said(str(answer), "warn")
            return None
        self.main.talk.said("confirmed", "good")
        return answer

    def _watch(self, run_id: str, *, retry: bool) -> None:
        self.main.run_pane.choose(run_id)
        self.main.show_pane("run", focus=False)
        self._follow(
            run_id,
            lambda operator, cancel: operator.carry_on(
                run_id, on_event=self.happenings.put, cancel=cancel, retry=retry
            ),
        )

    def _follow(
        self, key: str, act: Callable[[Operator, threading.Event], Answer], *, run_id: str | None = None
    ) -> None:
        """Carry something out (`key`: its plan, or its run); the same run is never followed twice from here."""
        if key in self._cancels or key in self._followed.values():
            self.main.talk.said("this is being followed already")
            return
        cancel = self._cancels[key] = threading.Event()
        if run_id is not None:
            self._followed[key] = run_id

        async def work() -> None:
            try:
                operator = await self.operator_when_open()
                answer = await in_thread(lambda: act(operator, cancel), name=f"bruno-act-{key[:12]}")
                self.draw_happenings()  # what led to the answer stands above it
                self._answer(answer)
            finally:
                del self._cancels[key]
                self._followed.pop(key, None)

        self._start(work, f"act-{key}")


def _follows_a_run(card: Card) -> bool:
    return any(step.action.kind == "run_playbook" for step in card.plan.steps)
