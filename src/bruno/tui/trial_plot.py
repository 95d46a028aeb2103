"""Refusals and KL by trial. Importing this file imports plotext, so it is done after the first frame, in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual_plotext import PlotextPlot

if TYPE_CHECKING:
    from bruno.operator.views import TrialView


# Two names for the two y axes: textual-plotext's annotations want a name in one call and a number in the other.
LEFT, RIGHT = ("left", 1), ("right", 2)


class TrialPlot(PlotextPlot):
    """Raw refusals on the left axis, first-token KL on the right; different marks, so it reads without colour."""

    def __init__(self) -> None:
        super().__init__(id="trial-plot")
        self._shown: tuple[TrialView, ...] | None = None

    def show(self, history: tuple[TrialView, ...]) -> None:
        """Draw these trials."""
        if history == self._shown:
            return
        self._shown = history
        self.display = len(history) > 1
        if not history:
            return
        plot = self.plt
        plot.clear_data()
        numbers = [trial.number for trial in history]
        most = max(1, *(trial.refusals for trial in history))
        plot.scatter(numbers, [trial.refusals for trial in history], marker="dot", label="refusals", yside=LEFT[0])
        plot.ylim(0, most, yside=LEFT[1])
        plot.yticks(sorted({round(most * part / 4) for part in range(5)}), yside=LEFT[1])
        measured = [(trial.number, trial.kl) for trial in history if trial.kl is not None]
        if measured:
            plot.scatter([n for n, _ in measured], [kl for _, kl in measured], marker="x", label="KL", yside=RIGHT[0])
            plot.ylim(0, max(0.01, *(kl for _, kl in measured)), yside=RIGHT[1])
        plot.xticks(sorted({numbers[round((len(numbers) - 1) * part / 4)] for part in range(5)}))
        plot.xlabel("trial")
        self.refresh()
