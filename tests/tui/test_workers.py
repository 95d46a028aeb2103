"""A run over several instances on both faces: one run, a line for each worker, readable at 80x24."""

from __future__ import annotations

import pytest
from textual.widgets import Static

from bruno.operator.views import RunState, RunView, WorkerView
from bruno.tui import words
from tests.tui.driving import opened
from tests.tui.scripted import NOW, run_view

PROBLEM = (
    "instance 34100203 was stopped (not by bruno: outbid, out of credit, the contract's end); processes on it are gone"
)
STATES = [
    (34100201, RunState.SEARCHING, ""),
    (34100202, RunState.SEARCHING, ""),
    (34100203, RunState.FAILED, PROBLEM),
    (None, RunState.FAILED, "offer 7 is gone"),
]


def worker(number: int, instance: int | None, state: RunState, problem: str) -> WorkerView:
    last = run_view().history[-1] if instance else None
    return WorkerView(
        number=number, run_id=f"demo-1-{number}", instance_id=instance, label=f"demo-1-{number}", gpu="H200", state=state,
        step="follow", scored=12 if instance else 0, last=last, spent=0.2, per_hour=2.181, problem=problem, read_at=NOW,
    )  # fmt: skip


def group(workers: int = 4) -> RunView:
    rows = [STATES[place % len(STATES)] for place in range(workers)]
    return run_view(
        gpu=f"{workers} instances, H200 each",
        per_hour=6.543,
        workers=tuple(worker(place, *row) for place, row in enumerate(rows, 1)),
    )


def test_each_worker_has_a_line_with_what_it_counted_and_what_went_wrong() -> None:
    lines = words.worker_lines(group())
    assert lines[0].startswith("worker 1  ▶ searching")
    assert "34100201" in lines[0] and "12 trials, last 4/40" in lines[0] and "$2.181/h" in lines[0]
    assert lines[0].endswith("makes the model")
    assert "✘ failed" in lines[2] and "outbid" in lines[2]
    assert "not rented" in lines[3] and "offer 7 is gone" in lines[3]
    assert words.trial(group()) == "5 of 20 trials"
    assert words.worker_lines(run_view()) == ()


@pytest.mark.parametrize("workers", [2, 4, 8])
async def test_the_run_pane_is_readable_at_80x24(make_app, operator, workers: int) -> None:
    operator.run_views = (group(workers),)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        app.main.show_pane("run")
        await pilot.pause()
        shown = app.main.query_one("#run-facts", Static)
        lines = str(shown.render()).splitlines()
        mine = [line for line in lines if line.startswith("worker ")]
        assert len(mine) == workers
        assert max(len(line) for line in lines) <= 78
        assert "together" in "".join(lines)
        last = shown.region
        assert shown.size.height == len(lines), "no line is wrapped"
        assert last.bottom <= 24, "every worker is on the screen"
