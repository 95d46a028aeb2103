"""Carry something out and follow it: happenings as lines, a bar with rate and remaining time on a terminal.

The work runs in a thread that the process does not wait for at its end; the main thread draws and listens for Ctrl-C. The
first Ctrl-C lets go cleanly (the run itself goes on, its records know where it stands), the second leaves at once.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from bruno.cli.boundary import INTERRUPTED
from bruno.cli.show import Output
from bruno.errors import BrunoError
from bruno.tui import words

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bruno.operator.service import Operator
    from bruno.operator.views import Answer, Happening, RunView

Work = Callable[[Callable[["Happening"], None], threading.Event], "Answer"]
_LOOK_SECONDS = 1.0
"""How often the run's records are looked at for the bar."""


@dataclass(frozen=True)
class Followed:
    """How it ended: the answer (None when we left before there was one), and whether the person let go."""

    answer: Answer | None
    interrupted: bool

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return INTERRUPTED
        if self.answer is not None and self.answer.exit_code is not None:
            return self.answer.exit_code
        return 6 if self.answer is not None and self.answer.failed else 0


class _Thread(threading.Thread):
    """The work; its happenings, notices and last of all None in a queue; its result or error kept."""

    def __init__(self, work: Work) -> None:
        super().__init__(name="bruno-act", daemon=True)
        self.happenings: queue.SimpleQueue[Happening | str | None] = queue.SimpleQueue()
        self.cancel = threading.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.last_said = ""
        self._work = work

    def run(self) -> None:
        try:
            self.answer = self._work(self.happenings.put, self.cancel)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self.error = error
        finally:
            self.happenings.put(None)


def follow(work: Work, *, operator: Operator, run_id: str | None, output: Output) -> Followed:
    """Do `work` and show what happens until it ends or the person lets go.

    Raises:
        BrunoError: what `work` raised.
    """
    thread = _Thread(work)
    looks = _Looks(operator, output, run_id)
    with _letting_go(thread) as interrupt, looks:
        thread.start()
        try:
            _show_until_done(thread, looks, output)
        except KeyboardInterrupt:
            say_what_is_left(operator, output)
            return Followed(None, interrupted=True)
    if thread.error is not None:
        raise thread.error
    if thread.answer is not None and (output.as_json or thread.answer.text != thread.last_said):
        output.reply(thread.answer)
    if interrupt.is_set():
        say_what_is_left(operator, output)
    return Followed(thread.answer, interrupt.is_set())


def _show_until_done(thread: _Thread, looks: _Looks, output: Output) -> None:
    while True:
        try:
            happening = thread.happenings.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            looks.look()
            continue
        if happening is None:
            looks.look()
            return
        if isinstance(happening, str):
            output.notice(happening)
            continue
        if happening.level != "quiet" or output.as_json:
            output.happening(happening)
            thread.last_said = happening.text
        looks.look(happening.run_id)


@contextmanager
def _letting_go(thread: _Thread) -> Iterator[threading.Event]:
    """The first Ctrl-C cancels and sets the event given back (the service may cancel by itself), the second raises."""
    interrupt = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()
        thread.cancel.set()
        # Nothing is written here: the main thread may be in the middle of a write. The queue may be put into at any time.
        thread.happenings.put("letting go; Ctrl-C again leaves at once")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def say_what_is_left(operator: Operator, output: Output) -> None:
    """What goes on without us and what it costs per hour; unknown when it cannot be read."""
    try:
        runs, instances = operator.runs(), operator.instances(fresh=True)
    except BrunoError as error:
        output.line(
            f"what is left running is unknown: {error}. bruno instances{' --sandbox' if operator.sandbox else ''}"
        )
        return
    for line in words.left_running(runs, instances, sandbox=operator.sandbox):
        output.line(line)


class _Looks:
    """The run's own records, looked at while it goes on: a bar on a terminal, a line per change elsewhere."""

    def __init__(self, operator: Operator, output: Output, run_id: str | None) -> None:
        self._operator = operator
        self._output = output
        self._run_id = run_id
        self._bar = _Bar() if output.on_terminal and not output.as_json and run_id is not None else None
        self._last: tuple[object, ...] = ()

    def __enter__(self) -> _Looks:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def look(self, run_id: str | None = None) -> None:
        self._run_id = self._run_id or run_id
        if self._run_id is None:
            return
        try:
            run = self._operator.run(self._run_id)
        except BrunoError:
            return  # not in the records yet; the happenings say what is going on
        if self._bar:
            self._bar.show(run)
        elif (
            seen := (run.state, run.trial, run.last, run.best, [worker.state for worker in run.workers])
        ) != self._last:
            self._last = seen
            self._output.run(run)


class _Bar:
    """A rich progress bar below the lines: trials, rate, remaining time, refusals, money."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(highlight=False, markup=False, emoji=False),
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, run: RunView) -> None:
        if run.trial is None or not run.trials:
            return
        detail = bar_detail(run)
        if self._task is None:
            self._task = self._progress.add_task(words.state(run), total=run.trials, detail=detail)
        self._progress.update(
            self._task, description=words.state(run), completed=run.trial, total=run.trials, detail=detail
        )


def bar_detail(run: RunView) -> str:
    """Rate, remaining time, refusals and money of a run under way."""
    parts = []
    if run.state.live and run.remaining_seconds is not None:
        left = (run.trials or 0) - (run.trial or 0)
        if left > 0 and run.remaining_seconds > 0:
            parts.append(f"{left / run.remaining_seconds * 60:.1f} trials/min")
        parts.append(f"{words.duration(run.remaining_seconds)} remaining")
    if run.last is not None:
        parts.append(f"refusals {run.last.refusals}/{run.last.prompts}")
    if run.best is not None:
        parts.append(f"best {run.best.refusals}/{run.best.prompts}")
    parts.append(f"{words.money(run.spent)} so far")
    return "  ".join(parts)
