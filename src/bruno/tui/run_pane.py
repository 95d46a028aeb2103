"""One run: where it stands, raw refusals, KL, time and money, and its trials as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import ProgressBar, Static

from bruno.guard.sanitise import safe_line
from bruno.tui import words
from bruno.tui.poller import Snapshot

if TYPE_CHECKING:
    from bruno.operator.views import RunView, TrialView
    from bruno.tui.trial_plot import TrialPlot

WORKER_WIDTH = 76
"""A worker has one line, also at 80 columns; its whole problem is said when it happens and by `bruno progress`."""
_LOG_GROWS = frozenset({"searching", "saving", "unknown"})
"""States in which the log is followed: before and after them there is nothing to read, and nothing is stale."""
_COLOURS = {"done": "$text-success", "failed": "$text-error", "unknown": "$text-warning", "stopped": "$text-muted"}


class RunPane(Vertical, can_focus=True):
    """Draws one run of the snapshot: the chosen one, else the newest that is live, else the newest."""

    def __init__(self) -> None:
        super().__init__(id="run")
        self.border_title = "run"
        self._chosen: str | None = None
        self._snapshot: Snapshot | None = None
        self._drawn: object = None
        self._plot: TrialPlot | None = None

    def compose(self) -> ComposeResult:
        yield Static("no run yet", id="run-head", markup=False)
        yield ProgressBar(show_eta=False, show_percentage=False, id="run-bar")
        yield Static("", id="run-facts", markup=False)

    def on_mount(self) -> None:
        self.query_one("#run-bar").display = False

    def show(self, snapshot: Snapshot) -> None:
        """Draw this snapshot; costs nothing when nothing that is drawn has changed."""
        self._snapshot = snapshot
        run = self.chosen
        drawn = (run, len(snapshot.runs), run is not None and _is_stale(run, snapshot))
        if drawn != self._drawn:
            self._drawn = drawn
            self._draw(run)

    def choose(self, run_id: str) -> None:
        """Show this run from now on."""
        self._chosen = run_id
        if self._snapshot is not None:
            self.show(self._snapshot)

    def step(self, by: int) -> None:
        """Show the next or previous run of the list."""
        runs = self._snapshot.runs if self._snapshot else ()
        if runs:
            current = self.chosen
            place = next((i for i, run in enumerate(runs) if current and run.run_id == current.run_id), 0)
            self.choose(runs[(place + by) % len(runs)].run_id)

    def attach(self, plot: TrialPlot) -> None:
        """Take the plot, once its library is there."""
        self._plot = plot
        self.mount(plot)
        plot.show(self.chosen.history if self.chosen else ())

    @property
    def chosen(self) -> RunView | None:
        runs = self._snapshot.runs if self._snapshot else ()
        for run in runs:
            if run.run_id == self._chosen:
                return run
        return next((run for run in runs if run.state.live), runs[0] if runs else None)

    def _draw(self, run: RunView | None) -> None:
        bar = self.query_one("#run-bar", ProgressBar)
        bar.display = run is not None and bool(run.trials)
        if run is None:
            self.query_one("#run-head", Static).update("no run yet")
            self.query_one("#run-facts", Static).update("")
            return
        snapshot = self._snapshot
        runs = snapshot.runs if snapshot else ()
        place = next(i for i, each in enumerate(runs, 1) if each.run_id == run.run_id)
        self.border_title = Content(safe_line(f"run {run.name}"))  # a plain string would be read as markup
        self.border_subtitle = Content(f"{place} of {len(runs)}  [ and ] change it" if len(runs) > 1 else "")
        self.query_one("#run-head", Static).update(_head(run))
        if run.trials:
            bar.update(total=run.trials, progress=run.trial or 0)
        stale = snapshot is not None and _is_stale(run, snapshot)
        self.query_one("#run-facts", Static).update("\n".join(facts(run, stale=stale)))
        if self._plot is not None:
            self._plot.show(run.history)


def _is_stale(run: RunView, snapshot: Snapshot) -> bool:
    return run.state.value in _LOG_GROWS and snapshot.is_stale(run.read_at)


def _head(run: RunView) -> Content:
    colour = _COLOURS.get(run.state.value, "$text-accent")
    step = f"  {safe_line(run.step)}" if run.step and run.step != run.state.value else ""
    about = f"\n{safe_line(run.model)} on {safe_line(run.gpu)}"
    where = f", instance {run.instance_id}" if run.instance_id is not None and not run.workers else ""
    return Content.assemble((words.state(run), f"bold {colour}"), step, about, where, "\n", words.trial(run))


def facts(run: RunView, *, stale: bool) -> list[str]:
    """The figures of a run, one line each, nothing smoothed over."""
    lines = [
        f"refusals   {words.refusals(run.initial)} at the start",
        *(_trial_line(name, view) for name, view in (("last", run.last), ("best", run.best)) if view is not None),
        *([f"no count   {', '.join(words.uncounted(run))}"] if words.uncounted(run) else []),
        f"elapsed    {words.duration(run.elapsed_seconds)}"
        + (f"   remaining {words.duration(run.remaining_seconds)}" if run.state.live else ""),
        f"money      {words.money(run.spent)} so far   now {words.money(run.per_hour, '/h')}"
        + (" together" if run.workers else ""),
        *(str(line)[:WORKER_WIDTH] for line in words.worker_lines(run)),
    ]
    if run.model_saved:
        lines.append(f"saved      {safe_line(run.model_saved, 300)}")
    if run.local_model:
        lines.append(f"at home    {safe_line(run.local_model, 300)}")
    if stale:
        lines.append("STALE      the log was not read for more than three polls")
    lines += [f"! {safe_line(text, 500)}" for text in run.discrepancies]
    if run.problem:
        lines.append(f"✘ {safe_line(run.problem, 500)}")
    return lines


def _trial_line(name: str, view: TrialView) -> str:
    kl = words.UNKNOWN if view.kl is None else f"{view.kl:.3g}"
    return f"{name:<11}{view.refusals}/{view.prompts}  KL {kl}  (trial {view.number})"
