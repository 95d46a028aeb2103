"""One study, any number of workers: trials are dealt out, taken, scored and told, none lost and none counted twice.

Touches the study's storage and nothing else. Optuna keeps the workers apart, here is only the order of its calls:

- **Dealt.** The run that made the study enqueues a trial for each `index` (0 to N - 1; the log counts them from 1), some
  ahead of the workers.
- **Taken.** A worker takes a waiting trial with `Study.ask`; the storage lets one of several have it. The index comes with
  the trial: Optuna's own numbers cannot serve, because every retry has a new one.
- **Drawn ahead.** While a batch is scored, what came of the one before is stored and the next is taken and drawn: all
  statements of a trial and the sampler's thinking, for which no accelerator should wait. So a draw knows nothing of the batch
  under way, as it knows nothing of what other workers have in hand; near the end, where it would keep trials from others,
  nothing is drawn ahead, and nothing is where candidates are screened, for which the model itself is needed.
- **Alive.** Its heartbeat is recorded from then on. One without a sign of life for the grace period is failed by any
  other worker's `fail_stale_trials`, and its trial waits again, with the same index and parameters.
- **Told.** A trial that was failed can be told no more: what a worker brings that was frozen too long is refused by the
  storage, in the same transaction that would have stored it.

What a crash can leave between two of these calls (a trial taken without a first heartbeat, failed without a retry, never
dealt at all) is set right by whoever finds nothing else to do.

Scores come from a function that is called in a thread which does nothing else. Where a model is behind it, this runs in a
process of its own (`bookkeeper.py`): Python that draws would hold up Python that launches work on the same interpreter.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import optuna
from optuna.trial import TrialState

from bruno.engine.edits.trial import TrialEdit
from bruno.engine.events import Emit, Notice, Progress, TrialFailed, TrialScored, TrialStarted, TrialStopped
from bruno.engine.scoring.result import Known, Scores, Stopped
from bruno.engine.search.board import Board, deal, drawn_by, fail_silent, give_back, look, mark, quietly
from bruno.engine.search.choice import pareto_front
from bruno.engine.search.heartbeats import Heartbeats
from bruno.engine.search.rdb import together
from bruno.engine.search.sampler import sampler_for
from bruno.engine.search.space import Space
from bruno.engine.search.storage import GRACE, PATIENCE, RETRIES, persist
from bruno.engine.search.study import FinishedTrial, Plan, Stop, finished_trials, tell

Score = Callable[[Sequence[TrialEdit], Sequence[Known]], Sequence[Scores | Stopped | str]]
"""Scores a batch of edits, told the trials that any of them may be certain not to beat; never called twice at once."""

Taken = tuple[int, optuna.Trial]
"""An index, and the trial that is to decide it."""
Decided = tuple[int, optuna.Trial, Scores | Stopped | str]
"""... and what came of it."""

LOOK = 2.0
"""Most seconds between two looks at the study while others hold its last trials."""


@dataclass
class Worker:
    """One process at work on a shared study.

    Args:
        study: opened with heartbeats (`storage.py`).
        name: unique among all workers of the study: its draws are seeded from it.
        heartbeat: seconds between two signs of life.
        alive: whether a heartbeat may be recorded now: that what scores is there.
        dealer: deals out the trials, as the run that made the study does; others only where nobody has for a while.
        patience: seconds that a storage which does not answer is waited for.
    """

    study: optuna.Study
    space: Space
    score: Score
    plan: Plan
    emit: Emit
    stop: Stop
    name: str
    heartbeat: int
    dealer: bool = False
    patience: float = PATIENCE
    alive: Callable[[], bool] = lambda: True
    scored: int = 0
    _asked: int = 0
    _front: list[FinishedTrial] = field(default_factory=list)
    _orphans: set[int] = field(default_factory=set)
    _idle: int = 0
    _began: float = 0.0
    _before: int = 0

    def work(self) -> bool:
        """Take trials and score them until the study holds all that were planned.

        Returns:
            True when it is whole, False when `stop` was requested first.

        Raises:
            StorageInternalError (of `STORAGE_ERRORS`): the storage did not answer for `patience` seconds.
        """
        # One thread beside this one waits for scores. The study is worked on by this one alone.
        scoring = ThreadPoolExecutor(1, "scoring")
        with Heartbeats(self.study._storage, self.heartbeat, self.alive) as beats, scoring:
            board = self._look()
            self._began, self._before = time.monotonic(), len(board.decided)
            batch: list[Taken] = []
            done: list[Decided] = []
            while True:
                if not batch or self.stop.requested:
                    board, done = self._store(done, beats) if done else board, []
                    if len(board.decided) >= self.plan.trials:
                        break
                    if self.stop.requested:
                        for _, trial in batch:
                            self._persist(lambda trial=trial: give_back(self.study, trial))
                        return False
                    batch = self._draw(board, beats)
                    if not batch:
                        self._wait(board, beats)
                        board = self._look()
                        continue
                batch, done = self._score(batch, done, beats, scoring)
        self._say_given_up(board)
        return True

    def _persist(self, action):
        return persist(action, lambda text: self.emit(Notice(text=text, level="warning")), self.patience)

    def _look(self) -> Board:
        return self._persist(lambda: look(self.study, self.plan.trials))

    def _draw(self, board: Board, beats: Heartbeats) -> list[Taken]:
        """The next batch, or less, or nothing."""
        if self.dealer:
            board = self._supply(board)
        self._persist(lambda: fail_silent(self.study))  # before asking, as Optuna itself does
        taken = self._take(board, beats)
        if taken:  # read now, so that no accelerator waits for it when the batch is to be scored
            self._front = pareto_front(self._persist(lambda: finished_trials(self.study)))
        return taken

    def _draw_ahead(self, board: Board, beats: Heartbeats) -> list[Taken]:
        """The next batch while one is scored, where that leaves one for every worker."""
        if self.plan.screening is not None:
            return []  # the model, which has to look at candidates, is busy
        left = self.plan.trials - len(board.decided | board.running.keys())
        if self.stop.requested or left < len(board.workers) * self.plan.batch:
            return []
        return self._draw(board, beats)

    def _supply(self, board: Board) -> Board:
        """Keep as many trials waiting as are in hand, and a batch: enough that every worker finds its next while we score
        ours, and few, because each of them is read at every look."""
        enough = len(board.running) + self.plan.batch
        if len(board.waiting) >= enough:
            return board
        ahead = enough + self.plan.batch
        if self._persist(lambda: deal(self.study, self.plan, board, ahead - len(board.waiting))):
            return self._look()
        return board

    def _take(self, board: Board, beats: Heartbeats) -> list[Taken]:
        """Up to a batch of waiting trials, drawn and with their first heartbeat."""
        taken: list[Taken] = []
        for _ in range(min(self.plan.batch, len(board.waiting))):  # which of them come is Optuna's to say
            trial = self._persist(lambda: self._ask(beats))
            if trial is None:
                break
            taken.append((trial.user_attrs["index"], trial))
        if not taken:
            return []
        board = self._look()
        return [each for each in taken if self._is_ours(each, board, beats)]

    def _ask(self, beats: Heartbeats) -> optuna.Trial | None:
        """One waiting trial; None where others were faster. Called again after a lost connection it takes another, and the
        one that was lost is failed for want of heartbeats."""
        self._asked += 1
        # Two workers with one seed would draw the same trials; which index comes is known too late to seed by it.
        key = int.from_bytes(hashlib.sha256(f"{self.name} {self._asked}".encode()).digest()[:6])
        self.study.sampler = sampler_for(replace(self.plan, warm_starts=()), self.plan.trials + key, self.space)
        with quietly():
            trial = self.study.ask()
        beats.begin(trial._trial_id)
        try:
            if trial.user_attrs.get("index", self.plan.trials) >= self.plan.trials:
                # Nobody dealt it: another took the last one between our look and our question.
                self._drop(trial, beats)
                return None
            with together(self.study):
                self.space.suggest(trial)
            trial.set_user_attr("drawn", mark(self.name, trial.number))
        except BaseException:
            beats.end(trial._trial_id)  # it is not ours to keep alive
            raise
        return trial

    def _is_ours(self, each: Taken, board: Board, beats: Heartbeats) -> bool:
        """Whether no other trial of this index was decided or came before; one that was dealt twice is dropped."""
        index, trial = each
        others = [*board.running.get(index, []), *board.waiting.get(index, [])]
        if index not in board.decided and all(trial.number <= other.number for other in others):
            return True
        self._persist(lambda: self._drop(trial, beats))
        return False

    def _drop(self, trial: optuna.Trial, beats: Heartbeats) -> None:
        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        beats.end(trial._trial_id)

    def _score(
        self, batch: list[Taken], done: list[Decided], beats: Heartbeats, scoring: Executor
    ) -> tuple[list[Taken], list[Decided]]:
        """Score a batch; meanwhile store what came of the one before, and draw the next.

        Returns:
            The next batch, where it could be drawn meanwhile; what came of this one, not stored yet.
        """
        self._idle, began = 0, time.monotonic()
        edits = [self.space.edit(trial.params) for _, trial in batch]
        running = scoring.submit(self.score, edits, self._known(done))
        try:
            board = self._store(done, beats)
            self._say_started(*batch[0])
            ahead = self._draw_ahead(board, beats)
        except Exception:
            self._store(_decided(batch, running), beats)  # whatever became of that, first these results are stored
            raise
        decided = _decided(batch, running)
        if time.monotonic() - began > GRACE * self.heartbeat:  # we may have been silent, and these another's by now
            ahead = [each for each in ahead if self._persist(lambda trial=each[1]: self._is_running(trial))]
        return ahead, decided

    def _known(self, done: Sequence[Decided]) -> list[Known]:
        """The trials that nothing beats, as read when the batch was drawn, and our own that are not stored yet."""
        own = [
            FinishedTrial(index, dict(trial.params), result)
            for index, trial, result in done
            if isinstance(result, Scores) and math.isfinite(result.kl)
        ]
        return [(each.number, each.scores) for each in pareto_front([*self._front, *own])]

    def _store(self, done: Sequence[Decided], beats: Heartbeats) -> Board:
        """Store what came of a batch, and say it; the study after that."""
        for position, (index, trial, result) in enumerate(done):
            if position:
                self._say_started(index, trial)
            self._tell(index, trial, result)
            beats.end(trial._trial_id)
        board = self._look()
        if done:
            self._progress(board)
        return board

    def _is_running(self, trial: optuna.Trial) -> bool:
        return self.study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING

    def _say_started(self, index: int, trial: optuna.Trial) -> None:
        shown = self.space.shown(trial.params)
        self.emit(TrialStarted(trial=index + 1, trials=self.plan.trials, parameters=shown))

    def _tell(self, index: int, trial: optuna.Trial, result: Scores | Stopped | str) -> None:
        """Store a result, unless the trial was taken from us; stored before a lost connection, it is only said."""
        try:
            self._persist(lambda: tell(self.study, trial, index, result, self.emit))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            now = self._persist(lambda: self.study._storage.get_trial(trial._trial_id))
            if not now.state.is_finished():
                raise
            if now.state == TrialState.FAIL and "reason" not in now.user_attrs:
                text = f"Trial {index + 1} was given to another worker while this one was silent; its result here is "
                self.emit(Notice(text=text + "not counted", level="warning"))
                return
            for kind, said in (("scores", TrialScored), ("stopped", TrialStopped)):
                if kind in now.user_attrs:
                    self.emit(said(trial=index + 1, **now.user_attrs[kind]))
            if "reason" in now.user_attrs:
                self.emit(TrialFailed(trial=index + 1, reason=now.user_attrs["reason"]))
        self.scored += 1

    def _wait(self, board: Board, beats: Heartbeats) -> None:
        """Others hold what is left, or nobody does: then start the clock of what has no heartbeat, and deal what nobody
        has, after a second look, because the dealer may be at work."""
        running = [trial for trials in board.running.values() for trial in trials]
        if self._idle == 0 and running:
            count = f"{len(running)} trial{'s' * (len(running) != 1)}"
            self.emit(Notice(text=f"Waiting for {count} of other workers"))
        self._idle += 1
        for trial in running:
            # Taken, and never marked as drawn: its worker may have died before its first heartbeat.
            if drawn_by(trial) is None and trial._trial_id not in self._orphans:
                self._orphans.add(trial._trial_id)
                self._persist(lambda trial_id=trial._trial_id: beats.beat(trial_id))
        if self._idle > 1 and not board.waiting:
            self._persist(lambda: deal(self.study, self.plan, self._look(), 4 * self.plan.batch))
        until = time.monotonic() + min(LOOK, self.heartbeat)
        while time.monotonic() < until and not self.stop.requested:
            time.sleep(0.1)

    def _progress(self, board: Board) -> None:
        """Of the whole study, at its pace since this process began."""
        done, elapsed = len(board.decided), time.monotonic() - self._began
        left = elapsed / max(1, done - self._before) * (self.plan.trials - done)
        self.emit(Progress(completed=done, trials=self.plan.trials, elapsed_seconds=elapsed, remaining_seconds=left))

    def _say_given_up(self, board: Board) -> None:
        for index in sorted(board.given_up):
            text = f"Trial {index + 1} was given up: {RETRIES + 1} workers fell silent while they had it"
            self.emit(Notice(text=text, level="warning"))


def _decided(batch: Sequence[Taken], running: Future[Sequence[Scores | Stopped | str]]) -> list[Decided]:
    """What came of a batch, waited for."""
    return [(index, trial, result) for (index, trial), result in zip(batch, running.result(), strict=True)]
