"""`bruno explain FOLDER`: what a run used, skipped and found, read from its folder on this machine. Needs no engine."""

from __future__ import annotations

from pathlib import Path

from bruno.cli.show import Output
from bruno.guard.sanitise import safe_line


def explain(folder: Path, *, plot: Path | None, as_json: bool) -> int:
    """Print the explanation as text or as one JSON object, and draw the plot that was asked for.

    Raises:
        BrunoError: no run lies there, or the plot cannot be drawn (the text is out by then).
    """
    from bruno.engine.explain import explain as read
    from bruno.engine.explain_text import lines

    run, output = read(folder), Output(as_json=as_json)
    if as_json:
        output.json(run.model_dump(mode="json"))
    else:
        for line in lines(run):
            indent = "  " if line.startswith("  ") else ""
            output.line(indent + safe_line(line, 2_000))
    if plot is not None:
        from bruno.engine.explain_plot import plot as draw

        drawn = draw(run, folder, plot)
        if not as_json:
            output.line(f"\nPlot: {safe_line(str(drawn), 2_000)}")
    return 0
