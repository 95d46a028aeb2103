"""What a run did, read back from its folder: what was used, what was skipped and why, and what it found.

Reads `report.json` and `events.jsonl`, without torch, so that it answers on the operator's machine as on the rented
one. Either file alone is enough: a saved model carries the report, an unfinished run has only events. Both may come
from a machine that is not trusted: they are validated before use, and whoever shows the lines sanitises them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bruno.engine import events as ev
from bruno.engine.folder import REPORT_FILE
from bruno.engine.log import EVENTS_FILE
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings

_LARGEST = 256 * 2**20  # bytes of a file that is read whole
_DEFAULTS = "Defaults of "
Kind = TypeVar("Kind")


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Trial(_Part):
    """A trial as the report tells it; `trial` counts from 1, `kl` is in nats."""

    trial: int
    refusals: int
    prompts: int
    kl: float
    rule: str = ""
    parameters: dict[str, float | str] = {}


class Used(_Part):
    """Which methods made the directions, and which could not apply and why."""

    used: list[str] = []
    skipped: dict[str, str] = {}


class HeldOutScores(_Part):
    """Scores on prompts that nothing else saw; intervals are Wilson's, 95 %, as shares of 1."""

    before: int
    after: int
    prompts: int
    before_interval: tuple[float, float]
    after_interval: tuple[float, float]
    kl: float
    kl_answered: float | None = None
    ordinary_before: int
    ordinary_after: int
    ordinary_prompts: int


class Report(_Part):
    """`report.json`. Keys that are not named here are kept and shown as they are: nothing reported is hidden."""

    model: str
    behaviour: str
    initial_refusals: tuple[int, int] | None = None
    chosen: Trial | None = None
    held_out: HeldOutScores | None = None
    saved: str | None = None
    trials: dict[str, int] = {}
    front: list[Trial] = []
    directions: Used = Used()
    seconds_of_this_start: dict[str, float] = {}
    settings: dict[str, Any] = {}
    fingerprint: dict[str, str] = {}
    machine: dict[str, str] = {}


class Explanation(BaseModel):
    """Everything `explain` tells; `model_dump(mode="json")` is its JSON form."""

    kind: str = "explanation"
    folder: str
    model: str
    behaviour: str
    state: str
    """How the run stands: finished, interrupted, failed and why, or not ended."""
    machine: dict[str, str]
    """Device, data type and versions."""
    loaded: str
    changed_settings: dict[str, Any]
    """Settings of the run that are not the engine's own defaults, dotted name to value."""
    defaults: list[str]
    directions: Used | None
    """None when the run did not come that far, or when nothing tells."""
    fallbacks: list[dict[str, str]]
    warnings: list[str]
    initial_refusals: tuple[int, int] | None
    trials: dict[str, int]
    failed_trials: dict[int, str]
    chosen: Trial | None
    front: list[Trial]
    held_out: HeldOutScores | None
    saved: list[str]
    seconds: dict[str, float]
    further: dict[str, Any]
    """What the report says beyond all this."""
    unread: int
    """Lines of `events.jsonl` that are no whole event."""


@dataclass(frozen=True)
class Story:
    """The events of a run, over all its starts; `unread` counts lines that were no whole event."""

    events: Sequence[ev.Event]
    unread: int = 0

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[Kind]) -> Kind | None:
        return (self.of(kind) or [None])[-1]


def explain(folder: Path) -> Explanation:
    """Read what a run's folder (or a saved model's) tells.

    Raises:
        InputError: it holds neither a report nor events, or a report that is not one.
    """
    report, story = read_report(folder), read_events(folder)
    started, loaded = story.last(ev.RunStarted), story.last(ev.ModelLoaded)
    if report is None and started is None:
        raise InputError(
            f"{folder} holds no run: neither {REPORT_FILE} nor {EVENTS_FILE} tells of one",
            fix="Name the folder that was given as --out, or a model that bruno saved",
        )
    selected, initial = story.last(ev.TrialSelected), story.last(ev.InitialScores)
    settings = started.settings if started else report.settings if report else {}
    return Explanation(
        folder=str(folder),
        model=report.model if report else started.model if started else "",
        behaviour=report.behaviour if report else started.behaviour if started else "",
        state=_state(story, report),
        machine=report.machine if report else {"bruno": started.version} if started else {},
        loaded=loaded.lines()[0].removeprefix("* Loaded ") if loaded else "",
        changed_settings=changed_settings(settings),
        defaults=_unique(each.text for each in story.of(ev.Notice) if each.text.startswith(_DEFAULTS)),
        directions=report.directions if report else None,
        fallbacks=[
            dict(zip(("method", "reason", "instead"), key, strict=True))
            for key in dict.fromkeys((each.method, each.reason, each.instead) for each in story.of(ev.Fallback))
        ],
        warnings=_unique(each.text for each in story.of(ev.Notice) if each.level == "warning"),
        initial_refusals=report.initial_refusals
        if report
        else (initial.refusals, initial.prompts)
        if initial
        else None,
        trials=_trials(story, report),
        failed_trials={each.trial: each.reason for each in story.of(ev.TrialFailed)},
        chosen=report.chosen if report else _chosen(story, selected),
        front=report.front if report else [],
        held_out=report.held_out if report else _held_out(story),
        saved=_unique([*(each.path for each in story.of(ev.ModelSaved)), *([report.saved or ""] if report else [])]),
        seconds=report.seconds_of_this_start if report else {},
        further=dict(report.model_extra or {}) if report else {},
        unread=story.unread,
    )


def read_report(folder: Path) -> Report | None:
    """`report.json`, or None when there is none (an unfinished run).

    Raises:
        InputError: it cannot be read, or does not say what a report says.
    """
    path = folder / REPORT_FILE
    content = _content(path)
    if content is None:
        return None
    try:
        return Report.model_validate(json.loads(content))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        raise InputError(f"{path} is not a report of a run ({where}: {problem['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a report of a run: it is not JSON") from error


def read_events(folder: Path) -> Story:
    """Every whole event of `events.jsonl`, in order; none when there is no such file.

    Raises:
        InputError: the file cannot be read.
    """
    events, unread = [], 0
    for line in (_content(folder / EVENTS_FILE) or b"").splitlines():
        if not line.strip():
            continue
        try:
            events.append(ev.parse_event(line))
        except ValidationError:
            unread += 1
    return Story(events, unread)


def _content(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than any run writes it")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", fix="Check the folder's name") from error


def _state(story: Story, report: Report | None) -> str:
    """What the last start came to. A report without events is a saved model's: its run got that far."""
    if not story.events:
        return "finished" if report else "unknown"
    for event in reversed(story.events):
        if isinstance(event, ev.Finished):
            return f"finished after {ev.duration(event.seconds)}"
        if isinstance(event, ev.Interrupted):
            return f"interrupted after {event.completed} of {event.trials} trials"
        if isinstance(event, ev.Failed):
            return f"failed: {event.message}"
        if isinstance(event, ev.RunStarted):
            break
    return "not ended: it runs, or was killed"


def changed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What differs from the engine's defaults, and is a setting's name at all. `out` and the model are told elsewhere."""
    standard = _flat(EngineSettings().model_dump(mode="json"))
    found = _flat(settings)
    return {
        name: value
        for name, value in found.items()
        if name not in ("out", "model", "behaviour") and (name not in standard or standard[name] != value)
    }


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _trials(story: Story, report: Report | None) -> dict[str, int]:
    if report:
        return report.trials
    scored = {each.trial for each in story.of(ev.TrialScored)}
    started = story.last(ev.TrialStarted)
    stopped = {each.trial for each in story.of(ev.TrialStopped)}
    return {"scored": len(scored), "stopped": len(stopped), **({"wanted": started.trials} if started else {})}


def _chosen(story: Story, selected: ev.TrialSelected | None) -> Trial | None:
    """The choice of a run that ended before its report: its parameters are those the log showed."""
    if selected is None:
        return None
    started = [each for each in story.of(ev.TrialStarted) if each.trial == selected.trial]
    return Trial(
        **selected.model_dump(exclude={"kind", "time"}), parameters=dict(started[-1].parameters) if started else {}
    )


def _held_out(story: Story) -> HeldOutScores | None:
    held = story.last(ev.HeldOut)
    return HeldOutScores.model_validate(held.model_dump(exclude={"kind", "time"})) if held else None


def _unique(texts) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
