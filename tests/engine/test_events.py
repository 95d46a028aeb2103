"""Each event says exactly the line that readers and people look for, and comes back whole from its JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine import events as ev

LINES = [
    (ev.InitialScores(refusals=97, prompts=104), ["* Initial refusals: 97/104"]),
    (ev.Resumed(next_trial=77, completed=76), ["Resuming from trial 77 (76 completed trials found)"]),
    (
        ev.TrialStarted(trial=5, trials=200, parameters={"direction_scope": "global", "attn.o_proj.max_weight": 0.92}),
        ["Running trial 5 of 200...", "  * direction_scope = global", "  * attn.o_proj.max_weight = 0.92"],
    ),
    (
        ev.TrialScored(trial=5, refusals=0, prompts=104, kl=0.26),
        ["  * KL divergence: 0.2600", "  * Refusals: 0/104"],
    ),
    (
        ev.TrialScored(trial=5, refusals=0, prompts=104, kl=0.26, kl_tokens=0.5),
        ["  * KL divergence: 0.2600", "  * KL over several tokens: 0.5000", "  * Refusals: 0/104"],
    ),
    (
        ev.Progress(completed=5, trials=200, elapsed_seconds=3780, remaining_seconds=7500),
        ["Elapsed time: 1h 3m", "Estimated remaining time: 2h 5m"],
    ),
    (ev.OutOfMemory(attempt=1, attempts=3), ["GPU OOM detected (attempt 1/3)"]),
    (
        ev.TrialSelected(trial=173, refusals=0, prompts=104, kl=0.26, rule="fewest refusals"),
        ["Auto-selecting trial 173 (Refusals: 0/104, KL divergence: 0.2600)", "* Chosen by: fewest refusals"],
    ),
    (ev.ModelSaved(path="/models/NAME"), ["Models Saved: /models/NAME"]),
    (ev.Finished(seconds=3.0), ["Optimization finished!"]),
    (ev.Notice(text="a"), ["* a"]),
    (ev.Notice(text="a", level="warning"), ["* Warning: a"]),
]


@pytest.mark.parametrize(("event", "lines"), LINES, ids=lambda value: getattr(value, "kind", ""))
def test_wording(event, lines):
    assert event.lines() == lines


@pytest.mark.parametrize("event", [event for event, _ in LINES], ids=lambda event: event.kind)
def test_json_gives_the_same_event_back(event):
    assert ev.parse_event(event.model_dump_json(exclude_none=True)) == event


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (59.9, "59s"), (60, "1m 0s"), (125, "2m 5s"), (3600, "1h 0m"), (90061, "25h 1m")],
)
def test_duration(seconds, text):
    assert ev.duration(seconds) == text


def test_a_cut_line_is_no_event():
    with pytest.raises(ValueError):
        ev.parse_event('{"kind":"notice","text":"half')


@given(st.text())
def test_any_text_survives(text):
    text = text.encode("utf-8", "replace").decode()
    event = ev.Notice(text=text)
    assert ev.parse_event(event.model_dump_json()) == event
