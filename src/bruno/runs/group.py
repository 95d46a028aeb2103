"""A run over several instances carried on as one: each has its row, its steps and its thread; the first one's end is the run's.

Renting comes first, one after the other and each once; then all come up side by side. A worker that fails is told and the
others go on; without the first there is nobody to choose and save, so its end ends the run's following.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from bruno.errors import BrunoError, RunFailed, Unreachable
from bruno.fleet.errors import Cancelled
from bruno.guard.sanitise import safe_line
from bruno.records.tables import RunState, StepState
from bruno.runs.events import Kind, OnEvent, RunEvent
from bruno.runs.money import money

if TYPE_CHECKING:
    from bruno.records import Run
    from bruno.runs.runner import Runner
    from bruno.runs.task import Task

LINGER = timedelta(minutes=2)
"""How long the other workers may take to end once the first one is done; they end by themselves when the study is whole."""
_OVER = (RunState.FINISHED.value, RunState.ENDED.value)


class _Cancel(Event):
    """Set by itself, or by the person's own flag."""

    def __init__(self, person: Event) -> None:
        super().__init__()
        self._person = person

    def is_set(self) -> bool:
        return super().is_set() or self._person.is_set()


class Group:
    """One `carry_on` of a run over several instances."""

    def __init__(self, runner: Runner, group_id: str, on_event: OnEvent, cancel: Event, *, retry: bool) -> None:
        self.runner, self.world, self.group_id = runner, runner.world, group_id
        self.rows = self.world.records.group(group_id)
        self._on_event, self._lock = on_event, Lock()
        self._cancel = _Cancel(cancel)
        self._retry = retry
        self._errors: dict[str, BaseException] = {}

    def carry_on(self, *, until: str | None = None) -> Run:
        """Go on with every instance until the first one's model is home, it fails, or the person lets go.

        Args:
            until: a step after which each instance is let go of ("launch"); None: to the end.

        Raises:
            As `Runner.carry_on`, for the first instance. What becomes of the others is told, and stands in their rows.
        """
        with ExitStack() as locks:
            for row in self.rows:
                locks.enter_context(self.runner.alone(row.run_id))
            try:
                self._rent()
                self._work(until)
            except Cancelled:
                self._tell(Kind.DETACHED, f"let go of run {self.group_id}; {self._left()}")
        return self.world.records.run(self.group_id)

    # --- renting ---

    def _rent(self) -> None:
        """Every rental that is not done yet, in order. One that fails is told; without the first nothing more is rented."""
        for row in self.rows:
            first = row.run_id == self.group_id
            if self._rented(row) or (self._given_up(row) and not first):
                continue
            task = self._task(row)
            try:
                self._rent_one(task)
            except BrunoError as error:
                if first:
                    raise self._without_first(error) from error
                self._errors[row.run_id] = error
        missing = [row for row in self._fresh() if row.instance_id is None]
        if missing and self._errors:
            why = "; ".join(f"{self._name(row)}: {self._why(row)}" for row in missing)
            there = len(self.rows) - len(missing)
            said = f"{there} of {len(self.rows)} instances are rented, {self._left()}. Not rented: {why}"
            self._tell(Kind.WARNING, f"{said}. The run goes on with those; to end it: stop {self.group_id}")

    def _rent_one(self, task: Task) -> None:
        """Rent, or find out what became of it: a reply that was lost is asked about before the next is rented."""
        row = task.row("rent")
        try:
            self.runner.do(task, row)
        except Unreachable:
            self.runner.do(task, row)

    def _rented(self, row: Run) -> bool:
        return self.world.records.steps(row.run_id)[0].state == StepState.DONE.value

    def _given_up(self, row: Run) -> bool:
        """Whether its rental failed for good before: then it is not tried again, since each is confirmed once."""
        unsettled = any(
            act.kind == "create_instance" for act in self.world.records.acts(run_id=row.run_id, unsettled=True)
        )
        return row.state in (RunState.FAILED.value, *_OVER) and row.instance_id is None and not unsettled

    def _without_first(self, error: BrunoError) -> BrunoError:
        """Nobody can make the study: nothing more is rented. Where others were rented before, what they cost is said."""
        if not any(row.instance_id for row in self._fresh()):
            return error
        return RunFailed(f"{error.message}; {self._left()}", fix=f"Stop it: stop {self.group_id}")

    # --- working ---

    def _work(self, until: str | None) -> None:
        rows = [row for row in self._fresh() if row.instance_id is not None and self._goes_on(row)]
        threads = {row.run_id: Thread(target=self._carry, args=(row, until), daemon=True) for row in rows}
        for thread in threads.values():
            thread.start()
        first = threads.pop(self.group_id, None)
        try:
            self._wait([first] if first else [], for_ever=True)
            if self.group_id in self._errors:
                raise self._first_failed(self._errors[self.group_id])
            self._wait(list(threads.values()), for_ever=until is not None)
        finally:
            self._cancel.set()
            for thread in threads.values():
                thread.join(timeout=30)
        if until is not None and not self.runner.is_over(self.group_id):
            raise Cancelled(f"let go of run {self.group_id}")

    def _goes_on(self, row: Run) -> bool:
        """Whether there is something to carry on; that the first has ended is for its own steps to say, with what to do."""
        return row.state not in _OVER or (row.run_id == self.group_id and row.state == RunState.ENDED.value)

    def _carry(self, row: Run, until: str | None) -> None:
        """One instance, in a thread of its own. What ends it is told by the runner and kept for the main thread."""
        task = self._task(row)
        try:
            self.runner.carry(task, until=until)
        except Cancelled:
            pass  # the person let go, or the run is over
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread when it is the first one's
            self._errors[row.run_id] = error
            if row.run_id != self.group_id:
                said = "" if isinstance(error, BrunoError) else f": {type(error).__name__}: {error}"
                self._tell(Kind.WARNING, f"{self._name(row)} is lost{said}; the run goes on with the others")
        finally:
            task.drop()

    def _wait(self, threads: Sequence[Thread], *, for_ever: bool) -> None:
        """Until these have ended; the person's flag ends the waiting, `LINGER` ends it for the others once the first is done."""
        end = self.world.clock() + LINGER
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.05)
            if self._cancel.is_set():
                raise Cancelled(f"let go of run {self.group_id}")
            if not for_ever and self.world.clock() >= end:
                self._tell(Kind.WARNING, "the model is home, and not every worker has ended; they are let go of")
                return

    def _first_failed(self, error: BaseException) -> BaseException:
        if not isinstance(error, BrunoError):
            return error
        others = [row for row in self._fresh() if row.run_id != self.group_id and row.instance_id is not None]
        if not others:
            return error
        said = f"{error.message}; the study is in its database, its other workers are as they were; {self._left()}"
        kind = Unreachable if isinstance(error, Unreachable) else RunFailed
        return kind(said, fix=f"Resume it to start the first again, or stop {self.group_id}")

    # --- telling ---

    def _task(self, row: Run) -> Task:
        def hear(event: RunEvent) -> None:
            text = safe_line(f"{self._name(row)}: {event.text}", 700)
            self._send(replace(event, run_id=self.group_id, text=text))

        return self.runner.task(row, hear, self._cancel, retry=self._retry)

    def _tell(self, kind: Kind, text: str) -> None:
        self._send(RunEvent(kind, self.group_id, self.world.clock(), safe_line(text, 900)))

    def _send(self, event: RunEvent) -> None:
        with self._lock:
            self._on_event(event)

    def _fresh(self) -> list[Run]:
        return self.world.records.group(self.group_id)

    def _name(self, row: Run) -> str:
        return name_of(row, self.rows)

    def _why(self, row: Run) -> str:
        error = self._errors.get(row.run_id)
        return error.message if isinstance(error, BrunoError) else row.problem or "not begun"

    def _left(self) -> str:
        return what_is_left(self._fresh(), self)


def name_of(row: Run, rows: Sequence[Run]) -> str:
    """`worker 2`: its place among the group's rows, from 1."""
    return f"worker {next(place for place, each in enumerate(rows, 1) if each.run_id == row.run_id)}"


def what_is_left(rows: Sequence[Run], group: Group) -> str:
    """Which instances are left as they are, and what they cost per hour together; an unknown price is said."""
    records, now = group.world.records, group.world.clock()
    there = [record for row in rows if row.instance_id and (record := records.instance(row.instance_id))]
    there = [record for record in there if record.gone_at is None]
    if not there:
        return "nothing is left running"
    rates = [money(record, now).per_hour for record in there]
    known = sum(rate for rate in rates if rate is not None)
    unknown = f" and {rates.count(None)} of unknown price" if None in rates else ""
    names = ", ".join(str(record.instance_id) for record in there)
    several = "instances" if len(there) > 1 else "instance"
    return f"{several} {names} left as they are cost ${known:.3f}/h{unknown} until you stop them"
