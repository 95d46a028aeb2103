"""What the steps of one `carry_on` share: the run's rows, its link to the machine, waiting that can be called off, telling."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from bruno.errors import RunFailed, Unreachable
from bruno.fleet.errors import Cancelled, CommandTimedOut, HostLost, HostRefused
from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import key_pair
from bruno.fleet.models import Instance, State
from bruno.guard.plan import Plan
from bruno.guard.sanitise import safe_line
from bruno.records.tables import Outcome
from bruno.runs.acting import note_shown
from bruno.runs.events import Kind, OnEvent, RunEvent
from bruno.runs.money import money

if TYPE_CHECKING:
    from pathlib import Path

    from bruno.guard.permit import Permit
    from bruno.records import Run, RunStep
    from bruno.runs.playbook import Playbook
    from bruno.runs.world import World

Value = TypeVar("Value")

LINK_TRIES = 6
LONGEST_PAUSE = 60.0
REACH_SECONDS = 30.0
"""How long one connecting may take once the machine has been reached before."""


class Task:
    """One run being carried on in this thread."""

    def __init__(
        self,
        world: World,
        run: Run,
        book: Playbook,
        on_event: OnEvent,
        cancel: Event,
        permit: Permit | None,
        *,
        retry: bool,
    ) -> None:
        self.world, self.book, self.permit, self.retry = world, book, permit, retry
        self.run_id = run.run_id
        self.plan = Plan.model_validate_json(run.plan_json)
        self.cancel = cancel
        self.step = ""
        self._on_event = on_event
        self._host: Host | None = None

    @property
    def run(self) -> Run:
        return self.world.records.run(self.run_id)

    @property
    def leads(self) -> bool:
        """Whether it makes the study and the model: the only instance, or the first of several."""
        return self.run.group_id in (None, self.run_id)

    @property
    def poll(self) -> float:
        return self.world.settings.fleet.poll_seconds

    @cached_property
    def home(self) -> Path:
        """The run's folder on this computer."""
        return self.world.paths.runs / self.run_id

    @property
    def instance_id(self) -> int:
        number = self.run.instance_id
        if number is None:
            raise RunFailed(f"run {self.run_id} has no instance", fix="Ask for the plan again and confirm it")
        return number

    def row(self, name: str) -> RunStep:
        """The record of one step."""
        return next(row for row in self.world.records.steps(self.run_id) if row.name == name)

    def note(self, **detail: Any) -> None:
        """What a restart must know of the step under way, written before acting on it."""
        self.world.records.note_step(self.run_id, self.step, **detail)

    # --- telling ---

    def tell(self, kind: Kind, text: str, **more: Any) -> None:
        self._on_event(RunEvent(kind, self.run_id, self.world.clock(), safe_line(text, 600), step=self.step, **more))

    def cost(self) -> str:
        """What goes on costing, in words."""
        number = self.run.instance_id
        record = self.world.records.instance(number) if number is not None else None
        if record is None or record.gone_at is not None:
            return "nothing is left running"
        costs = money(record, self.world.clock())
        rate = "an unknown price" if costs.per_hour is None else f"${costs.per_hour:.3f}/h"
        return f"instance {number} ({record.label}) is left as it is and costs {rate} until you stop it"

    # --- waiting ---

    def check(self) -> None:
        """Raise Cancelled when the person let go."""
        if self.cancel.is_set():
            raise Cancelled(f"let go of run {self.run_id}")

    def rest(self, seconds: float) -> None:
        """Sleep, in pieces, so that letting go is noticed at once."""
        while seconds > 0:
            self.check()
            self.world.sleep(min(0.5, seconds))
            seconds -= 0.5
        self.check()

    # --- the machine ---

    def shown(self) -> Instance | None:
        """The instance as the provider shows it; None when gone. Recorded. Raises Unreachable."""
        instance = self.world.vast.instance(self.instance_id)
        if instance is None:
            self.world.records.note_instance(self.instance_id, running=False, gone=True)
        else:
            note_shown(instance, self.world, self.run_id)
        return instance

    def host(self, *, patience: float = REACH_SECONDS) -> Host:
        """The open link, or a new one to where the instance is now (ports change when it is started again)."""
        if self._host is None or not self._host.connected:
            if self._host is not None:
                self.tell(Kind.WARNING, f"lost the link to instance {self.instance_id}; connecting again")
            self.drop()
            instance = self._there(self.shown())  # a machine that has ended is not knocked at for half a minute
            self._host = connect(
                instance,
                key_pair(self.world.paths.keys),
                HostKeys(self.world.paths.known_hosts),
                patience=patience,
                clock=self.world.clock,
                sleep=self.world.sleep,
                cancel=self.cancel,
            )
            self.world.records.note_instance(self.instance_id, running=True)
        return self._host

    def drop(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None

    def on_host(self, do: Callable[[Host], Value], *, for_ever: bool = False) -> Value:
        """`do(host)`, again over a new link when it breaks: only for what may be done twice.

        Args:
            for_ever: go on trying while the provider does not say that the machine has ended (following a log); else give up
                after some tries and leave it unknown.

        Raises:
            RunFailed: the provider says that the instance was stopped, failed or is gone.
            Unreachable: no link; what is going on there is unknown.
        """
        tries = 0
        while True:
            self.check()
            try:
                return do(self.host())
            except (HostLost, HostRefused, CommandTimedOut) as error:
                lost = error
            except Unreachable as error:  # the provider, asked for the address
                lost = error
            self.drop()
            tries += 1
            self._still_there()
            if tries >= LINK_TRIES and not for_ever:
                raise lost
            if tries == 1 or tries % 10 == 0:
                self.tell(Kind.WARNING, f"{lost.message}; what runs there goes on, trying again")
            self.rest(min(LONGEST_PAUSE, self.poll * 2 ** min(tries - 1, 5)))

    def _still_there(self) -> None:
        """Raise RunFailed when the provider says that the machine has ended; its silence is no such thing."""
        try:
            instance = self.shown()
        except Unreachable:
            return
        self._there(instance)

    def _there(self, instance: Instance | None) -> Instance:
        """The instance, unless the provider shows that it has ended: RunFailed then."""
        if instance is None:
            raise self._ended("no longer exists at the provider")
        if instance.state in (State.STOPPED, State.STOPPING):
            raise self._ended(f"was stopped ({self._who_stopped()})")
        if instance.state is State.FAILED:
            raise self._ended("has failed: its container ended")
        return instance

    def _who_stopped(self) -> str:
        """Outbid, out of credit and a stop look the same at the provider: only our own records tell."""
        number = self.instance_id
        ours = [
            act
            for act in self.world.records.acts()
            if act.kind == "stop_instance"
            and act.action["target"]["instance_id"] == number
            and act.outcome != Outcome.FAILED.value
        ]
        if ours:
            return f"by you, at {ours[-1].begun_at:%Y-%m-%d %H:%M} UTC"
        return "not by bruno: outbid, out of credit, the contract's end, or somebody at the provider's console"

    def _ended(self, what: str) -> RunFailed:
        return RunFailed(
            f"instance {self.instance_id} {what}; processes on it are gone",
            fix="Look at the provider's console and your credit; the run can be taken up again once it runs",
        )

    def deadline(self, minutes: float) -> Callable[[], bool]:
        """A question: are these minutes over?"""
        end = self.world.clock() + timedelta(minutes=minutes)
        return lambda: self.world.clock() >= end
