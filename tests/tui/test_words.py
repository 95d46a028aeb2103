"""Views as words: unknown is said, counts are raw, nothing acts on the terminal."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.operator.views import InstancesView, RunState
from bruno.tui import words
from tests.tui.scripted import NOW, instance_view, run_view


@pytest.mark.parametrize(
    ("dollars", "unit", "shown"),
    [
        (None, "", "unknown"),
        (None, "/h", "unknown"),
        (0.0, "", "$0.000"),
        (0.0714, "", "$0.071"),
        (12.345, "", "$12.35"),
        (3.41, "/h", "$3.410/h"),
    ],
)
def test_money(dollars: float | None, unit: str, shown: str) -> None:
    assert words.money(dollars, unit) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "unknown"), (0, "0s"), (12.4, "12s"), (302, "5m 2s"), (3780, "1h 3m"), (90061, "25h 1m"), (-3, "0s")],
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_age() -> None:
    assert words.age(None, NOW) == "never read"
    assert words.age(NOW - timedelta(seconds=75), NOW) == "1m 15s ago"


def test_a_run_in_one_line_says_what_is_unknown() -> None:
    bare = run_view(
        trial=None,
        trials=None,
        initial=None,
        last=None,
        best=None,
        elapsed_seconds=None,
        remaining_seconds=None,
        spent=None,
        per_hour=None,
        state=RunState.UNKNOWN,
    )
    assert words.run_line(bare) == "? demo-1 unknown · follow · unknown so far"
    assert words.trial(run_view(trials=None)) == "trial 5 of unknown"


def test_what_is_left_running() -> None:
    view = InstancesView(known=True, rows=(instance_view(), instance_view(instance_id=102, status="stopped")))
    lines = "\n".join(words.left_running((run_view(), run_view(name="old", state=RunState.DONE)), view))
    assert "demo-1 goes on without this console" in lines
    assert "old" not in lines
    assert "instance 101 (bruno-demo-1) is running: $3.410/h. bruno stop 101" in lines
    assert "instance 102 (bruno-demo-1) is stopped: $0.006/h. bruno destroy 102" in lines
    assert "no instance is rented" in "\n".join(words.left_running((), InstancesView(known=True)))


def test_what_a_sandbox_leaves_is_ended_in_the_sandbox() -> None:
    lines = words.left_running((run_view(),), InstancesView(known=True, rows=(instance_view(),)), sandbox=True)
    assert [line.rpartition(". ")[2] for line in lines] == [
        "bruno resume demo-1 --sandbox",
        "bruno stop 101 --sandbox",
    ]
    assert words.left_running((), None, sandbox=True)[0].endswith("bruno instances --sandbox")


@pytest.mark.parametrize("view", [None, InstancesView(known=False, problem="HTTP 500")])
def test_an_unread_list_is_never_nothing(view: InstancesView | None) -> None:
    lines = "\n".join(words.left_running((), view))
    assert "unknown" in lines
    assert "no instance is rented" not in lines
    assert words.spending(view) == "unknown"


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ((), "$0.000/h"),
        ((instance_view(),), "$3.410/h"),
        ((instance_view(status="stopped"),), "$0.006/h"),
        ((instance_view(status="unknown"),), "$3.410/h"),
        ((instance_view(), instance_view(per_hour=None)), "$3.410/h and 1 of unknown price"),
        ((instance_view(status="stopped", stopped_per_day=None),), "$0.000/h and 1 of unknown price"),
    ],
)
def test_spending(rows: tuple, shown: str) -> None:
    assert words.spending(InstancesView(known=True, rows=rows)) == shown


@given(st.text(max_size=60))
def test_no_text_of_a_view_reaches_the_terminal_raw(text: str) -> None:
    run = run_view(name=text, problem=text, discrepancies=(text,), label=text)
    row = instance_view(label=text, status=text, intended=text, gpu=text, ssh=text)
    shown = [words.run_line(run), *words.run_notes(run), *words.instance_row(row)]
    shown += words.left_running((run,), InstancesView(known=True, rows=(row,)))
    for each in shown:
        assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in each)
        assert "\u202e" not in each
