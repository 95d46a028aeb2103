"""The one service behind every face: words or an intent in, a reply out; a permit in, the plan carried out.

Methods block and may be called from worker threads; none prints. `ask`, `submit` and `choose` only read the world; `act` and
`carry_on` are the only ones that change it, and everything they do goes through `runs.acting` with the permit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from bruno.assistant.grammar import Grammar, spoken
from bruno.assistant.shell_lines import instance_line, local_line
from bruno.errors import BrunoError, Denied, InputError, Unreachable
from bruno.guard.decision import Verdict
from bruno.guard.judge import Context, judge
from bruno.guard.permit import Origin, Permit
from bruno.guard.phrases import ambiguous
from bruno.guard.plan import Plan
from bruno.guard.rules import Rules, load_rules
from bruno.guard.sanitise import safe_line
from bruno.intents import PERSON_ONLY, Clarification, Intent, NotUnderstood, SetConstraint
from bruno.operator.views import Answer, Ask, Card, Happening, InstancesView, Reply, RunView
from bruno.runs.commands import rules_for
from bruno.runs.investigate import active_holds
from bruno.runs.world import Clock, Sleep, World, utc_now
from bruno.settings.console import Settings
from bruno.settings.paths import Paths, own_guardrails
from bruno.settings.secrets import REDACTED, hide, secret

if TYPE_CHECKING:
    from bruno.fleet.models import Account, Listing
    from bruno.records import Records, Run

OnHappening = Callable[[Happening], None]


class Operator:
    """One per process. Opening it is cheap: database, provider and SSH are touched on first use."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        *,
        api_key: str | None,
        url: str | None = None,
        sandbox: bool = False,
        clock: Clock = utc_now,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.settings = settings
        self.paths = paths
        self.sandbox = sandbox
        self._api_key = api_key
        self._url = url or settings.fleet.url
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._cancels: set[Event] = set()
        self.grammar = Grammar({name: gpu.names for name, gpu in settings.gpus.items()})

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        paths: Paths,
        api_key: str | None,
        url: str | None = None,
        sandbox: bool = False,
    ) -> Operator:
        """The operator for these settings. `api_key` None: looked for in environment, secrets file and keyring."""
        key = api_key or secret("vast_api_key", where=paths)
        if key:
            hide(key)
        return cls(settings, paths, api_key=key, url=url, sandbox=sandbox)

    @cached_property
    def rules(self) -> Rules:
        """The guardrails in force: shipped, then tightened by the user's folder."""
        return load_rules(own_guardrails(self.settings, self.paths))

    @cached_property
    def records(self) -> Records:
        from bruno.records import Records

        self.paths.ensure()
        return Records(self.paths.database, self._clock)

    @cached_property
    def world(self) -> World:
        from bruno.fleet.vast import Vast

        if not self._api_key:
            raise InputError(
                "no Vast.ai API key is set",
                fix="Set VAST_API_KEY, or try everything without an account: bruno --sandbox",
            )
        token = secret("hf_token", where=self.paths)
        return World(
            records=self.records,
            vast=Vast(
                self._api_key, self._url, timeout=self.settings.fleet.timeout, clock=self._clock, sleep=self._sleep
            ),
            settings=self.settings,
            paths=self.paths,
            clock=self._clock,
            sleep=self._sleep,
            secrets={"HF_TOKEN": token} if token else {},
        )

    def preload(self) -> None:
        """The slow imports (the provider's package, SSH, the database), so that the first request does not wait for them."""
        from bruno.fleet.vast import preload

        preload()
        _ = self.world

    def close(self) -> None:
        """Let go of whatever is under way (nothing on a machine ends) and close the database."""
        with self._lock:
            for cancel in self._cancels:
                cancel.set()
        if "records" in self.__dict__:
            self.records.close()

    # --- words and intents ---

    def ask(self, words: str, *, origin: Origin) -> Reply:
        """What a person typed -> a reply. Words with two meanings become a question; unknown words go to the assistant."""
        words = words.strip()
        if not words:
            return Answer(text="Say what you want, for instance: start demo on an H200")
        line = local_line(words)
        if line is not None:
            from bruno.operator.commands import on_this_machine

            return on_this_machine(self, line, origin, words)
        said = spoken(words) or instance_line(words)
        if said is not None:
            return self.submit(said, origin=origin, words=words)
        vague = ambiguous(words, self.rules)
        if vague:
            return Ask(clarification=vague.clarification)
        intent = self.grammar.read(words)
        if intent is not None:
            return self.submit(intent, origin=origin, words=words)
        return self._ask_assistant(words, origin)

    def submit(self, intent: Intent, *, origin: Origin, words: str = "") -> Reply:
        """An intent from a key, the palette, a command or the grammar -> a reply."""
        from bruno.operator.answers import answer

        return answer(self, intent, origin, words)

    def choose(self, clarification: Clarification, letter: str, *, origin: Origin) -> Reply:
        """The reading the person chose. There is no default: anything but one of the letters is an error."""
        for option in clarification.options:
            if option.letter == letter.strip().upper():
                return self.submit(option.intent, origin=origin, words=option.text)
        letters = ", ".join(option.letter for option in clarification.options)
        raise InputError(f"{letter.strip()[:40]!r} is none of the options", fix=f"Type one letter: {letters}")

    def _ask_assistant(self, words: str, origin: Origin) -> Reply:
        from bruno.assistant.claude import understand

        key = secret("anthropic_api_key", where=self.paths) if self.settings.assistant.enabled else None
        asked = understand(words, self.settings.assistant, key, names=self._names()) if key else None
        found = asked or NotUnderstood(words=words)
        if isinstance(found, NotUnderstood):
            return self._not_understood(found, asked=bool(key))
        readings = [option.intent for option in found.options] if isinstance(found, Clarification) else [found]
        if any(each.kind in PERSON_ONLY for each in readings):
            return self._not_understood(NotUnderstood(words=words), asked=True)
        if isinstance(found, Clarification):
            return Ask(clarification=found)
        reply = self.submit(found, origin=origin, words=words)
        return reply.model_copy(update={"proposed_by_assistant": True}) if isinstance(reply, Card) else reply

    def _names(self) -> dict[str, list[str]]:
        return {"models": list(self.settings.models), "gpus": list(self.settings.gpus)}

    def _not_understood(self, found: NotUnderstood, *, asked: bool) -> Answer:
        from bruno.operator.misread import misread

        phrases = [words for words, _, _ in self.grammar.examples()]
        return misread(found.words, phrases, asked=asked, suggestions=found.suggestions)

    # --- decisions ---

    def card(self, plan: Plan, *, origin: Origin, words: str = "", listing: Listing | None = None) -> Card:
        """The plan with the guard's decision on it."""
        del origin  # recorded with the permit; the decision does not depend on who asked
        context = Context(
            now=self._clock(),
            rules=self.rules,
            live_instances=listing.live() if listing else _number(plan, "live_instances"),
            constraints=tuple(
                SetConstraint(rule=row.rule, value=row.value, words=row.words)  # type: ignore[arg-type]
                for row in self.world.records.constraints(plan.run_id)
            ),
            holds=active_holds(self.world.records),
            credit=_number(plan, "credit"),
            commands=rules_for(plan, self.world),
            git_remote=self.settings.guard.git_remote,
        )
        return Card(plan=plan, decision=judge(plan, context), origin_words=words)

    def save_plan(self, card: Card) -> None:
        """Keep a printed plan so that `bruno do --confirm PLAN_ID` can find it."""
        plan = card.plan
        self.world.records.save_plan(
            plan.plan_id, plan.model_dump_json(), created_at=plan.created_at, expires_at=plan.expires_at
        )

    def saved_plan(self, plan_id: str) -> Card:
        """A printed plan, judged again now. InputError when there is none, or it was changed since."""
        row = self.world.records.plan(plan_id)
        plan = Plan.model_validate_json(row.plan_json)
        if plan.plan_id != row.plan_id:
            if REDACTED in row.plan_json:
                raise Denied(f"plan {plan_id[:12]} holds a secret, kept nowhere", fix="Confirm it at a terminal")
            raise Denied(
                f"the saved plan {plan_id[:12]} was changed since it was printed", fix="Ask for the plan again"
            )
        return self.card(plan, origin=Origin.SCRIPT, listing=self.world.vast.instances())

    # --- acting ---

    def act(
        self,
        card: Card,
        permit: Permit | None,
        *,
        on_event: OnHappening,
        follow: bool = True,
        cancel: Event | None = None,
    ) -> Answer:
        """Carry the plan out.

        Args:
            card: what was shown. permit: minted by a face for exactly this plan; None only when nothing needs one.
            on_event: called in this thread with everything that happens.
            follow: go on to the end of a run; else return once its engine is launched.
            cancel: set by the face to let go (nothing on the machine is ended).

        Raises: Denied, NotConfirmed, FactsChanged, Unreachable, RunFailed: each says what was done and what was not.
        """
        from bruno.operator.carry import carry_out

        if card.decision.verdict in (Verdict.DENY, Verdict.CLARIFY):
            raise Denied("; ".join(card.decision.reasons) or "the guard denied this plan")
        if permit is None and card.decision.verdict is not Verdict.ALLOW:
            raise Denied("this plan needs a confirmation", fix="Type the word it asks for")
        origin = permit.origin if permit else Origin.KEYBOARD
        # A shell line rents nothing, and its own gate reads its instance again.
        listing = None if card.is_shell_line else self.world.vast.instances()
        again = self.card(card.plan, origin=origin, listing=listing)
        if again.decision.verdict is Verdict.DENY:
            raise Denied(f"the facts have changed since the plan was shown: {'; '.join(again.decision.reasons)}")
        if permit is None and again.decision.verdict is not Verdict.ALLOW:
            raise Denied("this plan needs a confirmation now", fix="Ask for it again")
        with self._cancellable(cancel) as stop:
            return carry_out(self, card.plan, permit, on_event=on_event, follow=follow, cancel=stop)

    def carry_on(
        self, run_id: str, *, on_event: OnHappening, cancel: Event | None = None, retry: bool = False
    ) -> Answer:
        """Take a run up where its records leave it, and follow it. Rents nothing that was not confirmed, and nothing twice."""
        from bruno.operator.carry import follow_run
        from bruno.operator.concerns import refuse_while_held

        refuse_while_held(self, self.run(run_id), retry=retry)
        with self._cancellable(cancel) as stop:
            return follow_run(self, run_id, on_event=on_event, cancel=stop, retry=retry)

    def cancel_all(self) -> int:
        """STOP: let go of everything under way here; how many there were. What runs on machines goes on and is billed."""
        with self._lock:
            for cancel in self._cancels:
                cancel.set()
            return len(self._cancels)

    @contextmanager
    def _cancellable(self, cancel: Event | None) -> Iterator[Event]:
        """A cancel flag that STOP and closing the console can reach while the work is under way."""
        flag = cancel or Event()
        with self._lock:
            self._cancels.add(flag)
        try:
            yield flag
        finally:
            with self._lock:
                self._cancels.discard(flag)

    # --- views ---

    def unfinished(self) -> tuple[RunView, ...]:
        """Runs that records leave in the middle: taken up again when a console starts. Open acts are settled first."""
        if not self._api_key or not self.paths.database.exists():
            return ()
        from bruno.runs.acting import settle_all

        settle_all(self.world)
        return tuple(view for view in self.runs() if view.state.live)

    def runs(self) -> tuple[RunView, ...]:
        """All runs, newest first."""
        if not self.paths.database.exists():
            return ()
        return self._views(self.records.runs())

    def run(self, name: str) -> RunView:
        """The run with this id, or the only one whose id contains it. InputError with the nearest otherwise."""
        rows = self.records.runs()
        exact = [run for run in rows if name in (run.run_id, run.label)]
        # What is named is the run: an instance of several has a name of its own, which means the run that it is part of.
        named = {run.group_id or run.run_id for run in exact or rows if exact or (name and name in run.run_id)}
        if len(named) > 1:
            raise InputError(f"{name!r} may mean {', '.join(sorted(named))}", fix="Say the whole name")
        return self._views([self.records.run(named.pop() if named else name)])[0]

    def _views(self, rows: Sequence[Run]) -> tuple[RunView, ...]:
        from bruno.operator.group_view import views

        return views(rows, self.records, self.paths, self._clock())

    def looked_at(self, run: RunView) -> RunView:
        """The run with its logs asked for now, when nobody follows it. A silent machine leaves the last reading, and says so."""
        from bruno.runs.runner import Runner

        stale = timedelta(seconds=3 * self.settings.fleet.poll_seconds)
        if not run.state.live or (run.read_at and self._clock() - run.read_at < stale):
            return run
        silent = []
        for worker in run.workers or (run,):
            if not worker.state.live:
                continue
            try:
                Runner(self.world).refresh(worker.run_id)
            except BrunoError as error:
                silent.append(f"the log could not be read just now: {problem_line(error)}")
        now = self.run(run.run_id)
        return now.model_copy(update={"problem": "; ".join(silent)}) if silent else now

    def latest_run(self, name: str | None = None) -> RunView:
        """The run that was named, else the one that is under way, else the newest. InputError when there is none."""
        if name:
            return self.run(name)
        runs = self.runs()
        if not runs:
            raise InputError("there are no runs yet", fix="Say: start demo on an H200")
        live = [run for run in runs if run.state.live]
        if len(live) > 1:
            raise InputError(
                f"{len(live)} runs are under way: {', '.join(run.run_id for run in live)}", fix="Say which one"
            )
        return live[0] if live else runs[0]

    def instances(self, *, fresh: bool = False) -> InstancesView:
        """The provider's list; `fresh` False may give one that is a few seconds old."""
        from bruno.operator.look import instances_view

        listing = self.world.vast.instances(max_age=0 if fresh else self.settings.fleet.poll_seconds)
        account = self.account() if listing.known else None  # who cannot be reached is not asked twice
        return instances_view(listing, self.world, account.credit if account else None)

    def account(self) -> Account | None:
        """Credit and owner; None when it could not be read (which is shown as unknown)."""
        try:
            return self.world.vast.account()
        except Unreachable:
            return None

    def local_models(self) -> dict[str, Path]:
        """Models at home by name: copied from runs, and made here."""
        found = {path.name: path for path in sorted(self.paths.models.glob("*")) if (path / "config.json").is_file()}
        for run in self.records.runs() if self.paths.database.exists() else []:
            if run.local_model and Path(run.local_model).is_dir():
                found[run.run_id] = Path(run.local_model)
        return found


def problem_line(error: BrunoError) -> str:
    """An error as one line for a screen."""
    return str(safe_line(str(error), 600))


def _number(plan: Plan, name: str) -> Any:
    """The fact's number; None when it is unknown, or none."""
    fact = plan.fact(name)
    return fact.value if fact and isinstance(fact.value, int | float) else None
