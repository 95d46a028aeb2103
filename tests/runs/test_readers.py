"""The readers against hand-written logs (this tool's, older tools', broken ones) and hostile bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.runs.progress import Count, Progress
from bruno.runs.readers import LINE_BYTES, EventReader, LineCutter, LogReader, seconds


def read(text: str | bytes) -> Progress:
    reader = LogReader()
    reader.feed(text.encode() if isinstance(text, str) else text)
    return reader.progress


OURS = """\
bruno engine 0.1.0: removing refusal from some/model
* Run folder: models (seed 0, process 77)
* Loaded some/model: llama, 30 layers x 576, bfloat16 on cpu (3s)
* Initial refusals: 97/104
Resuming from trial 77 (76 completed trials found)
Running trial 77 of 200...
  * attn.o_proj.max_weight = 0.92
  * KL divergence: 0.2600
  * Refusals: 3/104
Elapsed time: 1h 3m
Estimated remaining time: 2h 5m
Running trial 78 of 200...
  * KL divergence: 0.1000
  * Refusals: 3/104
GPU OOM detected (attempt 1/3)
Running trial 79 of 200...
  * Trial 79 failed: out of memory
Auto-selecting trial 78 (Refusals: 3/104, KL divergence: 0.1000)
Models Saved: /workspace/models/NAME
* Held-out refusals before: 60/60 (95 % interval 94.0 to 100.0 %)
* Held-out refusals after: 1/60 (95 % interval 0.3 to 8.9 %)
* Held-out KL divergence: 0.1200
* Ordinary prompts refused: 0/60 before, 1/60 after
Optimization finished!
"""


def test_a_whole_log() -> None:
    seen = read(OURS)
    assert seen.initial_refusals == Count(refused=97, prompts=104)
    assert (seen.trial, seen.trials, seen.completed, seen.failed_trials, seen.resumed_from) == (79, 200, 78, 1, 77)
    assert (str(seen.refusals), seen.kl) == ("3/104", 0.1)
    assert (seen.best and seen.best.trial, seen.selected and seen.selected.trial) == (78, 78)
    assert (seen.elapsed_seconds, seen.remaining_seconds) == (3780, 7500)
    assert (seen.model_saved, seen.finished, seen.out_of_memory) == ("/workspace/models/NAME", True, 1)
    assert seen.held_out is not None
    assert [str(count) for count in (seen.held_out.before, seen.held_out.after)] == ["60/60", "1/60"]
    assert str(seen.held_out.ordinary_after) == "1/60"
    assert seen.state == "finished"


OLDER = """\
\x1b[1mRunning trial \x1b[36m1\x1b[0m of \x1b[36m50\x1b[0m...\x1b[0m
* Parameters:
  * direction_index = \x1b[1m17.5\x1b[0m
* Resetting model...
* Evaluating...
  * Obtaining first-token probability distributions...
  * KL divergence: \x1b[1m0.26\x1b[0m
  * Counting model refusals...
\r  0%|          | 0/100\r 50%|#####     | 50/100\r100%|##########| 100/100\r  * Refusals: \x1b[1m12\x1b[0m/\x1b[1m100\x1b[0m

Elapsed time: \x1b[1m36s\x1b[0m
Estimated remaining time: \x1b[1m29m 24s\x1b[0m
Trials on the front:
  Refusals: 0/100
  * Refusals: 1/100
[Trial 1] Refusals: 12/100, KL divergence: 0.26
"""


def test_an_older_tools_log_with_colours_and_bars() -> None:
    seen = read(OLDER)
    assert (seen.trial, seen.trials, seen.completed) == (1, 50, 1)
    assert (str(seen.refusals), seen.kl) == ("12/100", 0.26)
    assert (seen.elapsed_seconds, seen.remaining_seconds) == (36, 1764)
    assert [str(trial.refusals) for trial in seen.history] == ["12/100"]


@pytest.mark.parametrize(
    "line",
    [
        "Auto-selecting trial 5 (Refusals: 0/104, KL divergence: 0.26)",
        "  * Refusals: 0/104",
        "Refusals: 0/104",
        "* Initial refusals: 0/104",
        "[Trial 5] Refusals: 0/104, KL divergence: 0.26",
        "Best so far: Refusals: 0/104",
        "0.8125",
    ],
)
def test_a_count_outside_a_block_is_no_trials_score(line: str) -> None:
    before = "Running trial 1 of 9...\n  * KL divergence: 0.5\n  * Refusals: 7/104\nElapsed time: 3s\n"
    seen = read(before + line + "\n")
    assert [str(trial.refusals) for trial in seen.history] == ["7/104"]
    assert str(seen.refusals) == "7/104"


@pytest.mark.parametrize(
    "line",
    ["  * Refusals: 0.8125", "  * Refusals: 5/4", "  * Refusals: 0/0", "  * Refusals: -1/4", "  * Refusals: a/b"],
)
def test_what_is_no_count_is_not_counted(line: str) -> None:
    seen = read(f"Running trial 1 of 9...\n{line}\n")
    assert (seen.refusals, seen.completed) == (None, 0)


@pytest.mark.parametrize("prompts", [1, 4, 100, 104, 416, 10**6])
def test_denominators_of_any_size(prompts: int) -> None:
    assert read(f"Running trial 1 of 2...\n  * Refusals: 1/{prompts}\n").refusals == Count(refused=1, prompts=prompts)


def test_best_is_fewest_refusals_then_least_divergence_then_first() -> None:
    block = "Running trial {} of 9...\n  * KL divergence: {}\n  * Refusals: {}/104\n"
    trials = [(1, 0.01, 9), (2, 0.5, 2), (3, 0.3, 2), (4, 0.3, 2), (5, "nan", 2)]
    best = read("".join(block.format(*trial) for trial in trials)).best
    assert best is not None
    assert (best.trial, best.kl) == (3, 0.3)


@pytest.mark.parametrize(
    ("end", "field", "value", "state"),
    [
        ("Killed\n", "killed", True, "failed"),
        ("run.sh: line 3:   812 Killed                  python -m bruno.engine\n", "killed", True, "failed"),
        (
            "Traceback (most recent call last):\n  File 'x', line 1\nRuntimeError: boom\n",
            "failed",
            "RuntimeError: boom",
            "failed",
        ),
        ("Error: the disk is full\n* 4 trials are kept\n", "failed", "the disk is full", "failed"),
        ("OSError: [Errno 28] No space left on device\n", "disk_full", True, "searching"),
        (
            "Interrupted: 4 of 9 trials are saved; the same command goes on from there\n",
            "interrupted",
            True,
            "interrupted",
        ),
        ("Models Saved: /m\n", "model_saved", "/m", "saved"),
    ],
)
def test_how_it_ended(end: str, field: str, value: object, state: str) -> None:
    seen = read("Running trial 1 of 9...\n  * Refusals: 1/4\n" + end)
    assert getattr(seen, field) == value
    assert seen.state == state
    assert not seen.finished


def test_a_traceback_that_was_survived_is_no_failure() -> None:
    text = "Traceback (most recent call last):\n  File 'x'\nValueError: only a library\n"
    assert read(text).failed == "ValueError: only a library"
    assert read(text + "Running trial 2 of 9...\n").failed is None


def test_a_second_start_forgets_the_end_and_keeps_the_scores() -> None:
    first = OURS.replace("Optimization finished!", "Error: out of memory")
    assert read(first).failed == "out of memory"
    again = "bruno engine 0.1.0: removing refusal from some/model\nResuming from trial 79 (78 completed trials found)\n"
    seen = read(first + again)
    assert (seen.failed, seen.model_saved, seen.elapsed_seconds, seen.state) == (None, None, None, "starting")
    assert (seen.completed, seen.best and seen.best.trial) == (78, 78)
    anew = "bruno engine 0.1.0: removing refusal from some/model\nRunning trial 1 of 200...\n"
    assert read(first + anew).best is None


def test_a_silent_log_says_nothing() -> None:
    seen = read("")
    assert (seen.state, seen.trial, seen.refusals, seen.completed) == ("silent", None, None, 0)


@given(st.data())
def test_cut_anywhere_it_reads_the_same(data: st.DataObject) -> None:
    raw = (OURS + "* café ✔ \x1b[1mbold\x1b[0m\n" + OLDER).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=30)))
    reader, lines = LogReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        lines += reader.feed(raw[start:end])
    whole = LogReader()
    assert (lines, reader.progress) == (whole.feed(raw), whole.progress)


@given(st.binary(max_size=2000))
def test_no_bytes_raise(raw: bytes) -> None:
    for reader in (LogReader(), EventReader()):
        reader.feed(b"Running trial 1 of 2...\n" + raw + b"\n")
        assert reader.progress.completed == 0 or b"efusals" in raw


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KINDS = [
    "trial_scored",
    "trial_started",
    "resumed",
    "progress",
    "held_out",
    "notice",
    "model_saved",
    "trial_selected",
    "x",
]
_NAMES = ["trial", "trials", "refusals", "prompts", "kl", "text", "path", "completed", "next_trial", "elapsed_seconds"]


@given(
    st.lists(
        st.fixed_dictionaries({"kind": st.sampled_from(_KINDS)}, optional=dict.fromkeys(_NAMES, _JSON)), max_size=5
    )
)
def test_no_event_raises(events: list[dict[str, object]]) -> None:
    reader = EventReader()
    for event in events:
        reader.feed(json.dumps(event).encode() + b"\n")
    assert isinstance(reader.progress, Progress)


def test_events_of_a_newer_engine_are_passed_over() -> None:
    reader = EventReader()
    reader.feed(
        b'{"kind":"telepathy","trial":1}\n{"kind":"trial_scored","trial":1,"refusals":2,"prompts":4,"kl":0.5,"mood":"ok"}\n'
    )
    assert (reader.progress.completed, reader.progress.unreadable) == (1, 0)
    reader.feed(b'{"kind":"trial_sc\n[1]\n"x"\n')
    assert reader.progress.unreadable == 3


def test_a_log_without_line_ends_is_cut() -> None:
    cutter = LineCutter()
    lines = [line for _ in range(100) for line in cutter.feed(b"x" * 10_000)]
    assert [len(line) for line in lines] == [LINE_BYTES]
    assert len(cutter._rest) <= LINE_BYTES
    assert cutter.feed(b"rest\nnext\n") == ["next"]


@pytest.mark.parametrize(
    ("text", "value"), [("1h 3m", 3780), ("2m 5s", 125), ("7s", 7), ("1d 2h", 93600), ("0s", 0), ("100h 0m", 360000)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value
