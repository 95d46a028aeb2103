"""What the engine's own writer prints, read back: both renderings tell the story that was told, however the bytes arrive."""

from __future__ import annotations

import io
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine import events as said
from bruno.engine.log import EVENTS_FILE, Emitter
from bruno.runs.compare import compare
from bruno.runs.progress import Progress
from bruno.runs.readers import EventReader, LogReader

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=30)
kl = st.floats(0, 100, allow_nan=False)
prompts = st.integers(1, 500)


@st.composite
def counts(draw: st.DrawFn) -> dict[str, int]:
    total = draw(prompts)
    return {"refusals": draw(st.integers(0, total)), "prompts": total}


@st.composite
def trial_block(draw: st.DrawFn, number: int, trials: int) -> list[said._Event]:
    parameters = draw(
        st.dictionaries(st.sampled_from(["scope", "attn.o_proj.max_weight"]), st.floats(-1, 2) | words, max_size=2)
    )
    begun = said.TrialStarted(trial=number, trials=trials, parameters=parameters)
    if draw(st.integers(0, 9)) == 0:
        return [begun, said.TrialFailed(trial=number, reason=draw(words))]
    several = draw(st.none() | kl)
    if draw(st.integers(0, 4)) == 0:
        total = draw(prompts)
        better = draw(st.integers(1, max(1, number - 1)))
        seen = draw(st.integers(0, total))
        stopped = said.TrialStopped(
            trial=number, at_least=seen, prompts=total, kl=draw(kl), kl_tokens=several, excess=0.1, better=better
        )
        return [begun, stopped]
    return [begun, said.TrialScored(trial=number, kl=draw(kl), kl_tokens=several, **draw(counts()))]


def asides() -> st.SearchStrategy[said._Event]:
    return st.one_of(
        st.builds(said.Notice, text=words, level=st.sampled_from(["info", "warning"])),
        st.builds(said.Fallback, method=words, reason=words, instead=words),
        st.builds(said.OutOfMemory, attempt=st.integers(1, 3), attempts=st.just(3)),
    )


@st.composite
def session(draw: st.DrawFn, done: int, trials: int, *, last: bool) -> tuple[list[said._Event], int]:
    """One start of the engine, from trial `done` + 1 on; the story and how many trials are done then."""
    start = said.RunStarted(version="0", model=draw(words), behaviour="b", out="o", seed=0, pid=1)
    story: list[said._Event] = [start, *draw(st.lists(asides(), max_size=2)), said.InitialScores(**draw(counts()))]
    if done:
        story.append(said.Resumed(next_trial=done + 1, completed=done))
    stop = trials if last else draw(st.integers(done, trials))
    for number in range(done + 1, stop + 1):
        story += draw(trial_block(number, trials))
        times = draw(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
        story.append(
            said.Progress(completed=number, trials=trials, elapsed_seconds=times[0], remaining_seconds=times[1])
        )
    return story, stop


@st.composite
def stories(draw: st.DrawFn) -> list[said._Event]:
    trials = draw(st.integers(1, 6))
    first, done = draw(session(0, trials, last=False))
    second, _ = draw(session(done, trials, last=True))
    story = [*first, *second] if done else second
    end = draw(st.sampled_from(["finished", "failed", "interrupted", "killed"]))
    if end == "failed":
        story.append(said.Failed(message=draw(words), kept=draw(words)))
    elif end == "interrupted":
        story.append(said.Interrupted(completed=trials, trials=trials))
    elif end == "finished":
        chosen = said.TrialSelected(trial=trials, kl=draw(kl), rule=draw(words), **draw(counts()))
        held = said.HeldOut(before=3, after=0, prompts=3, before_interval=(0.4, 1), after_interval=(0, 0.6), kl=draw(kl),
                            ordinary_before=0, ordinary_after=1, ordinary_prompts=3)  # fmt: skip
        story += [chosen, said.ModelSaved(path="/workspace/models/a model"), held, said.Finished(seconds=3)]
    return story


def readings(story: list[said._Event], cuts: list[int]) -> tuple[Progress, Progress]:
    """Written by the engine's writer, read by both readers in pieces."""
    stream = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        with Emitter(Path(folder), stream) as emit:
            for event in story:
                emit(event)
        both = stream.getvalue().encode(), (Path(folder) / EVENTS_FILE).read_bytes()
    log, events = LogReader(), EventReader()
    for raw, reader in zip(both, (log, events), strict=True):
        edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
        for start, end in pairwise(edges):
            reader.feed(raw[start:end])
    return log.progress, events.progress


@settings(deadline=None, max_examples=150)
@given(stories(), st.lists(st.integers(0, 10**5), max_size=20))
def test_both_renderings_tell_what_was_told(story: list[said._Event], cuts: list[int]) -> None:
    log, events = readings(story, cuts)
    assert compare(log, events, at_rest=True) == []
    scored = {event.trial: event for event in story if isinstance(event, said.TrialScored)}
    for seen in (log, events):
        assert {t.trial: (t.refusals.refused, t.refusals.prompts) for t in seen.history} == {
            number: (event.refusals, event.prompts) for number, event in scored.items()
        }
        assert all(trial.kl == pytest.approx(scored[trial.trial].kl, abs=1e-4) for trial in seen.history)
        assert seen.stopped_trials == len({event.trial for event in story if isinstance(event, said.TrialStopped)})
        assert seen.finished == isinstance(story[-1], said.Finished)
        assert seen.interrupted == isinstance(story[-1], said.Interrupted)
        assert (seen.failed is not None) == isinstance(story[-1], said.Failed)
    same = {"trial", "trials", "completed", "refusals", "initial_refusals", "resumed_from", "model_saved", "failed_trials",
            "out_of_memory", "state", "unreadable", "stopped_trials"}  # fmt: skip
    assert log.model_dump(include=same) == events.model_dump(include=same)


def test_a_difference_is_named_with_both_sides() -> None:
    story: list[said._Event] = [
        said.TrialStarted(trial=1, trials=2, parameters={}),
        said.TrialScored(trial=1, refusals=3, prompts=104, kl=0.1),
    ]
    log, _ = readings(story, [])
    _, events = readings([story[0], said.TrialScored(trial=1, refusals=4, prompts=104, kl=0.2)], [])
    found = [str(item) for item in compare(log, events, at_rest=False)]
    assert found == [
        "refusals of trial 1: the log says 3/104, the events says 4/104",
        "KL divergence of trial 1: the log says 0.1, the events says 0.2",
    ]


def test_silence_is_a_difference_only_at_rest() -> None:
    log, events = readings([said.TrialStarted(trial=1, trials=2, parameters={}), said.ModelSaved(path="/m")], [])
    behind = Progress(source="events")
    assert compare(log, behind, at_rest=False) == []
    assert [item.subject for item in compare(log, behind, at_rest=True)] == ["model saved", "trials"]
    assert compare(log, events, at_rest=True) == []
