"""The runner: a confirmed plan carried out step by step, from wherever its records leave it.

Every step may be done again: what must happen once (renting, launching) is written down before it happens and asked about
afterwards. So a console that was killed anywhere goes on with `carry_on`, and two consoles cannot carry on one run at once.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from bruno.errors import BrunoError, Denied, InputError, RunFailed, Unreachable
from bruno.fleet.errors import Cancelled
from bruno.fleet.models import State
from bruno.guard.actions import CreateInstance, RunPlaybook, StartInstance
from bruno.guard.plan import Plan
from bruno.records import Run
from bruno.records.tables import Outcome, RunState, StepState
from bruno.runs import deliver, follow, job, provision, reach
from bruno.runs.acting import perform
from bruno.runs.events import Kind, OnEvent
from bruno.runs.group import Group
from bruno.runs.home import HomeReading, read_home
from bruno.runs.playbook import load_playbook
from bruno.runs.task import Task

if TYPE_CHECKING:
    from bruno.guard.permit import Permit
    from bruno.records import RunStep
    from bruno.runs.world import World

_DO: dict[str, Callable[[Task, Any], dict[str, Any]]] = {
    "rent": provision.rent,
    "wait_ready": provision.wait_ready,
    "identify": provision.identify,
    "check_disk": provision.check_disk,
    "install": job.install,
    "reach": reach.reach,
    "smoke": job.smoke,
    "launch": job.launch,
    "follow": follow.follow,
    "verify": deliver.verify,
    "fetch": deliver.fetch,
}
_permits: dict[str, Permit] = {}
"""Confirmations of this process's own runs, by run id. Never written anywhere: with the process they are gone."""


class Runner:
    """Carries runs out. `carry_on` blocks, so faces call it from a worker thread."""

    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self, plan: Plan, permit: Permit, *, model: str, settings: dict[str, object], behaviour: str = "") -> str:
        """Use the permit up, write the run and its steps, and return its id. Nothing is rented yet: `carry_on` does.

        Args:
            plan: CreateInstance (or StartInstance) and RunPlaybook steps; RegisterKey first when the key is new. `plan.run_id`
                names the run (the instance's label when it is None). With several CreateInstance steps, those that the
                playbook names as its workers', each gets a row of its own and all are written, or none.
            permit: minted for exactly this plan.
            model: what is reshaped (hub id or `demo`). settings: the engine's settings that somebody said; they travel to
                the machine as config.toml.

        Raises:
            Denied: the permit does not cover the plan, or was used before.
            InputError: the plan is no run's, or its name is taken.
        """
        actions = [step.action for step in plan.steps]
        playbooks = [action for action in actions if isinstance(action, RunPlaybook)]
        machines = [action for action in actions if isinstance(action, CreateInstance | StartInstance)]
        labels = [each.label if isinstance(each, CreateInstance) else each.target.label for each in machines]
        if len(playbooks) != 1 or not labels or (len(labels) > 1 and tuple(labels) != playbooks[0].workers):
            raise InputError("a run's plan gets one machine, or one for each worker, and runs one playbook on it")
        book = load_playbook(playbooks[0].playbook)
        run_id = plan.run_id or labels[0]
        rows = [self._row(plan, playbooks[0], run_id, label, settings, len(labels) > 1) for label in labels]
        rows[0].run_id = run_id
        for row in rows:
            row.model, row.behaviour = model, behaviour
        now = self.world.clock()
        for action in actions:
            permit.require(action, now=now)
        origin, minted = permit.origin.value, permit.minted_at
        self.world.records.use_permit(plan.plan_id, seal=permit.seal, origin=origin, minted_at=minted, run_id=run_id)
        self.world.records.add_runs([(row, book.names(first=row.run_id == run_id)) for row in rows])
        perform(playbooks[0], permit, self.world, run_id=run_id)
        folder = self.world.paths.runs / run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
        _permits.update({row.run_id: permit for row in rows})
        return run_id

    def _row(
        self, plan: Plan, play: RunPlaybook, run_id: str, label: str, settings: dict[str, object], several: bool
    ) -> Run:
        """The row of one instance, named by its label."""
        now = self.world.clock()
        return Run(
            run_id=label,
            label=label,
            group_id=run_id if several else None,
            title=plan.title,
            model=play.model,
            behaviour=play.behaviour,
            playbook=play.playbook,
            plan_id=plan.plan_id,
            plan_json=plan.model_dump_json(),
            settings=dict(settings),
            trials=_trials(plan),
            created_at=now,
            updated_at=now,
        )

    def carry_on(
        self,
        run_id: str,
        on_event: OnEvent,
        cancel: Event | None = None,
        *,
        retry: bool = False,
        until: str | None = None,
    ) -> Run:
        """Go on with a run until it is finished, it fails, or `cancel` is set; safe to call again after a kill -9 anywhere.

        Args:
            on_event: called in this thread with every RunEvent.
            retry: start the failed program (installer, engine) again; the engine's search goes on from its own study.
            until: let go once this step is done ("launch"), on every instance; None goes on to the end.

        Returns:
            The run's row as it is then: state finished, or active when it was let go of.

        Raises:
            RunFailed: naming the step, what is left running and what it costs.
            Unreachable: the machine or the provider does not answer; the run is as it was and may be carried on.
            Denied, FactsChanged, OfferGone, ...: nothing was rented.
        """
        run = self.world.records.run(run_id)
        if run.state == RunState.FINISHED.value:
            return run
        if run.group_id is not None:
            return Group(self, run.group_id, on_event, cancel or Event(), retry=retry).carry_on(until=until)
        task = self.task(run, on_event, cancel or Event(), retry=retry)
        with self.alone(run_id):
            try:
                return self.carry(task, until=until)
            except Cancelled:
                task.step = ""
                task.tell(Kind.DETACHED, f"let go of run {run_id}; {task.cost()}")
                return task.run
            finally:
                task.drop()

    def task(self, run: Run, on_event: OnEvent, cancel: Event, *, retry: bool) -> Task:
        """What the steps of one row share. `drop` it when done."""
        permit = _permits.get(run.run_id)
        return Task(self.world, run, load_playbook(run.playbook), on_event, cancel, permit, retry=retry)

    def carry(self, task: Task, *, until: str | None = None) -> Run:
        """Every step of one row that is not done yet. The caller holds its lock and lets go of its link.

        Raises:
            Cancelled: called off, or `until` is done. As `carry_on` otherwise.
        """
        self._take_up(task, task.run)
        for row in self.world.records.steps(task.run_id):
            if row.state != StepState.DONE.value:
                self.do(task, row)
            if row.name == until:
                raise Cancelled(f"let go of run {task.run_id}")
        return self._finish(task)

    def is_over(self, run_id: str) -> bool:
        """Whether nothing of this row is left to be done."""
        return self.world.records.run(run_id).state == RunState.FINISHED.value

    def fetch(self, run_id: str, on_event: OnEvent, cancel: Event | None = None) -> Path:
        """Copy the run's saved model home (resumable) and return its folder.

        Raises:
            RunFailed: no model was saved. Unreachable, TransferFailed, DiskFull, Cancelled: call again to go on.
        """
        run = self.world.records.run(run_id)
        book = load_playbook(run.playbook)
        task = Task(self.world, run, book, on_event, cancel or Event(), None, retry=False)
        with self.alone(run_id):
            try:
                for name in ("verify", "fetch"):
                    task.step = name
                    _DO[name](task, book.step(name))
            finally:
                task.drop()
        local = self.world.records.run(run_id).local_model
        if local is None:
            raise RunFailed(f"run {run_id} saved no model")
        return Path(local)

    def refresh(self, run_id: str, *, patience: float = 10) -> HomeReading:
        """Ask the machine's log once and return what it says: for a run that no console follows just now.

        Raises:
            RunFailed: its instance is gone. Unreachable: it does not answer within `patience` seconds.
        """
        run = self.world.records.run(run_id)
        launched = any(row.name == "launch" and row.attempts for row in self.world.records.steps(run_id))
        task = Task(self.world, run, load_playbook(run.playbook), lambda _: None, Event(), None, retry=False)
        if run.instance_id is not None and launched:
            try:
                host = task.host(patience=patience)
                job.bring_all(host, job.Places.of(host, run_id), task.home)
            finally:
                task.drop()
        return read_home(task.home)

    # --- one step ---

    def do(self, task: Task, row: RunStep) -> None:
        """One step, recorded before and after."""
        task.check()
        step = task.book.step(row.name)
        task.step = row.name
        self.world.records.start_step(task.run_id, row.name)
        task.tell(Kind.STEP_STARTED, step.title)
        try:
            detail = _DO[row.name](task, step)
        except Cancelled:
            raise
        except BrunoError as error:
            self._failed(task, step.title, error)
        else:
            self.world.records.end_step(task.run_id, row.name, **detail)
            task.tell(Kind.STEP_DONE, f"{step.title}: {detail.get('skipped', 'done')}")

    def _failed(self, task: Task, title: str, error: BrunoError) -> None:
        """Record why, say what is left running, and raise: unknown stays unknown, the rest is a failed run."""
        self.world.records.end_step(task.run_id, task.step, problem=str(error))
        nothing_rented = task.run.instance_id is None
        unknown = isinstance(error, Unreachable)
        state = {} if unknown else {"state": RunState.FAILED.value}
        self.world.records.update_run(task.run_id, problem=f"{title}: {error.message}", **state)
        cost = "" if nothing_rented else f"; {task.cost()}"
        task.tell(Kind.WARNING if unknown else Kind.FAILED, f"{title}: {error}{cost}")
        if nothing_rented or unknown:
            raise error
        raise RunFailed(f"{title}: {error.message}{cost}", fix=error.fix) from error

    # --- around the steps ---

    def _take_up(self, task: Task, run: Run) -> None:
        """Make ready what an earlier end left: an ended run needs its instance, a retry its launch, a young machine time."""
        shown = None
        if run.instance_id is not None:
            try:
                shown = task.shown()
            except Unreachable as error:
                task.tell(Kind.WARNING, f"{error.message}; the records say how far the run is")
        if run.state == RunState.ENDED.value and (shown is None or shown.stopped):
            raise RunFailed(
                f"run {task.run_id} has ended: its instance {run.instance_id} is {'gone' if shown is None else 'stopped'}",
                fix="Start the instance again first, or ask for a new run",
            )
        rows = {row.name: row for row in self.world.records.steps(task.run_id)}
        pending = next((name for name, row in rows.items() if row.state != StepState.DONE.value), None)
        # A model that was looked at and rejected is made again; a look that did not come through is only repeated.
        rejected = pending == "verify" and run.state == RunState.FAILED.value
        if task.retry and (pending == "follow" or rejected):
            for name in ("launch", "follow"):
                self.world.records.reopen_step(task.run_id, name, detail=rows[name].detail)
        waited = rows["wait_ready"].state == StepState.DONE.value
        if waited and shown is not None and shown.state is State.PROVISIONING:
            self.world.records.reopen_step(task.run_id, "wait_ready")
        if run.instance_id is not None:
            self.world.records.update_run(task.run_id, state=RunState.ACTIVE.value, problem="")

    def _finish(self, task: Task) -> Run:
        task.step = ""
        now = self.world.clock()
        for act in self.world.records.acts(run_id=task.run_id, unsettled=True):
            if act.kind == "run_playbook" and act.act_id is not None:
                self.world.records.end_act(act.act_id, Outcome.DONE)
        run = self.world.records.update_run(task.run_id, state=RunState.FINISHED.value, finished_at=now, problem="")
        what = run.local_model or "no model was saved"
        if run.group_id not in (None, run.run_id):
            what = "its trials are in the study"
        task.tell(Kind.FINISHED, f"run {task.run_id} is finished: {what}; {task.cost()}")
        _permits.pop(task.run_id, None)
        return run

    @contextmanager
    def alone(self, run_id: str) -> Iterator[None]:
        """The lock of one run: the kernel lets go of it however the process ends."""
        folder = self.world.paths.runs / run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Denied(
                    f"another bruno is carrying run {run_id} on", fix="Watch it there, or see: bruno progress"
                ) from None
            yield


def _trials(plan: Plan) -> int | None:
    fact = plan.fact("trials")
    return int(fact.value) if fact is not None and isinstance(fact.value, int | float) else None
