"""The step that follows the engine to its end: its process, its log and events, the disk, the money; and where they disagree."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bruno.errors import RunFailed
from bruno.fleet import jobs
from bruno.fleet.host import Host
from bruno.fleet.jobs import JobPhase, JobState
from bruno.guard.disk import GB
from bruno.guard.sanitise import safe_line
from bruno.runs import playbook as book
from bruno.runs.compare import compare
from bruno.runs.events import Kind
from bruno.runs.home import HomeReading, read_home
from bruno.runs.job import ENDED, Places, bring_all, how_it_ended, last_words
from bruno.runs.money import money
from bruno.runs.progress import Disagreement, Progress

if TYPE_CHECKING:
    from bruno.runs.task import Task

LOOK_AROUND = timedelta(seconds=60)
"""How often disk and provider are asked while the log is followed."""
LINES_SHOWN = 50
INTERRUPTED = 130


def follow(task: Task, step: book.Follow) -> dict[str, Any]:
    """Follow the engine until its process has ended.

    Raises:
        RunFailed: it failed, was killed, or its instance ended; what its log says last is in the message.
    """
    watch = _Watch(task, step)
    while True:
        state, free = task.on_host(watch.look, for_ever=True)
        watch.tell_progress()
        if free is not None:
            watch.tell_disk(free)
        if state.phase in ENDED:
            return watch.end(state)
        task.rest(task.poll)


@dataclass
class _Watch:
    """What has been told already, so that nothing is told twice."""

    task: Task
    step: book.Follow
    last: Progress | None = None
    lines: int = -1
    looked: datetime | None = None
    warned: bool = False

    def look(self, host: Host) -> tuple[JobState, int | None]:
        """One poll. The state is asked first: what is read after a process has ended is all that it said."""
        places = Places.of(host, self.task.run_id)
        state = jobs.state(host, places.job)
        while bring_all(host, places, self.task.home):
            if state.phase not in ENDED:
                break
        free = None
        now = self.task.world.clock()
        if self.looked is None or now - self.looked >= LOOK_AROUND:
            self.looked = now
            free = host.free_disk(places.root)
            self.task.world.records.note_instance(self.task.instance_id, running=True)
        return state, free

    def tell_progress(self) -> HomeReading:
        """Events for what is new in the log."""
        task, reading = self.task, read_home(self.task.home)
        new = reading.lines - self.lines if self.lines >= 0 else 0
        self.lines = reading.lines
        if new > 0:
            shown = tuple(safe_line(line, 400) for line in reading.tail[-min(new, LINES_SHOWN) :])
            task.tell(Kind.LOG, shown[-1], lines=shown)
        if reading.progress != self.last:
            self.last = reading.progress
            costs = money(task.world.records.instance(task.instance_id), task.world.clock())
            task.tell(Kind.PROGRESS, sentence(reading.progress), progress=reading.progress, money=costs)
        self.tell_disagreements(compare(reading.log, reading.events, at_rest=False))
        return reading

    def tell_disagreements(self, found: list[Disagreement]) -> None:
        for item in found:
            said = {"subject": item.subject, "source": item.source, "said": item.said}
            other = {"other_source": item.other_source, "against": item.against}
            if self.task.world.records.add_discrepancy(self.task.run_id, **said, **other):
                self.task.tell(Kind.DISCREPANCY, str(item))

    def tell_disk(self, free: int) -> None:
        """The disk is watched during the run: a model half-saved on a full disk has cost hours."""
        low = free < self.step.warn_below_gb * GB
        if low and not self.warned:
            self.task.tell(Kind.WARNING, f"only {free / GB:.1f} GB are free on the machine's disk")
        self.warned = low

    def end(self, state: JobState) -> dict[str, Any]:
        """The process has ended: did it do what it was asked?"""
        reading = read_home(self.task.home)
        seen = reading.progress
        self.tell_disagreements(compare(reading.log, reading.events, at_rest=True))
        if state.exit_code == 0 and not seen.finished:
            self.tell_disagreements([_disagreement("finished", "process", "exit code 0", "no last line")])
        if state.exit_code == 0 and (seen.finished or seen.model_saved):
            return {"exit_code": 0, "trials": seen.completed, "model": seen.model_saved}
        raise RunFailed(
            f"the engine ended without its result at {where(seen)} ({how_it_ended(state)}): {self._why(state, seen)}",
            fix="Its finished trials are kept on the machine: resume the run, or stop the instance",
        )

    def _why(self, state: JobState, seen: Progress) -> str:
        if state.out_of_memory:
            return "the machine ran out of memory"
        if seen.failed:
            return str(safe_line(seen.failed, 300))
        if seen.interrupted or state.exit_code == INTERRUPTED:
            return "it was interrupted"
        if state.phase is JobPhase.LOST or seen.killed:
            return "it was killed without a word"
        return f"its last line is: {last_words(self.task.home / 'engine.log')}"


def sentence(seen: Progress) -> str:
    """One line of progress: raw counts, never ratios."""
    parts = [where(seen)]
    if seen.refusals:
        kl = f", KL {seen.kl:.3f}" if seen.kl is not None else ""
        parts.append(f"last {seen.refusals} refusals{kl}")
    if seen.best:
        kl = f", KL {seen.best.kl:.3f}" if seen.best.kl is not None else ""
        parts.append(f"best {seen.best.refusals}{kl} (trial {seen.best.trial})")
    if seen.initial_refusals:
        parts.append(f"{seen.initial_refusals} before")
    if seen.model_saved:
        parts.append(f"model saved at {seen.model_saved}")
    return "; ".join(parts)


def where(seen: Progress) -> str:
    """`trial 57 of 200`, or the stage before the first trial."""
    if seen.trial is not None:
        return f"trial {seen.trial} of {seen.trials}"
    return seen.stage or "its start"


def _disagreement(subject: str, source: str, said: str, against: str) -> Disagreement:
    return Disagreement(subject=subject, source=source, said=said, other_source="log", against=against)
