"""Readers of a run's two renderings: the human log (also of older tools) and events.jsonl. Bytes in, `Progress` out.

Both are fed as the bytes arrive, cut anywhere: in a line, in a UTF-8 character, in an escape sequence. Nothing raises on
strange input; what cannot be read is counted. They touch no file. The wording is the engine's contract ("The log");
`Refusals: x/y` counts inside a trial's block alone, since it appears in the choice line and in summaries too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from bruno.runs.progress import Count, HeldOut, Progress, TrialResult
from bruno.runs.tally import Tally, count

LINE_BYTES = 64 * 1024
"""A longer line is cut there: nothing the engine says is, and a log without line ends must not fill the memory."""
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class LineCutter:
    """Bytes to whole lines. What follows the last line end waits for more."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, decoded, without line ends; a line keeps its carriage returns."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = []
        for raw in whole:
            if not self._skipping:
                lines.append(raw[:LINE_BYTES].decode("utf-8", errors="replace"))
            self._skipping = False
        if len(self._rest) > LINE_BYTES:
            if not self._skipping:
                lines.append(self._rest[:LINE_BYTES].decode("utf-8", errors="replace"))
            self._rest, self._skipping = b"", True
        return lines


class LogReader:
    """The human log. `feed` returns the new lines, for showing; `progress` is the story so far."""

    def __init__(self) -> None:
        self._cutter = LineCutter()
        self._tally = Tally("log")
        self._block: int | None = None
        self._kl: float | None = None
        self._traceback = False
        self._recoverable = False

    @property
    def progress(self) -> Progress:
        return self._tally.snapshot()

    def feed(self, data: bytes) -> list[str]:
        lines = []
        for line in self._cutter.feed(data):
            # A progress bar rewrites its line with carriage returns: each writing is read, the last one is shown.
            writings = [_ANSI.sub("", part) for part in line.rstrip("\r").split("\r")]
            for text in writings:
                self._read(text)
            lines.append(writings[-1])
        return lines

    def _read(self, text: str) -> None:
        if self._traceback and text[:1].strip():
            self._traceback = False
            self._tally.failed, self._recoverable = text.strip(), True
            return
        if text.startswith("Traceback (most recent call last)"):
            self._traceback = True
            return
        for pattern, act in _LINES:
            match = pattern.match(text)
            if match:
                act(self, match)
                return
        self._read_plain(text)

    def _read_plain(self, text: str) -> None:
        """A line that is no fact of its own: a step under way, a warning, or the shell's last words."""
        if "No space left on device" in text:
            self._tally.disk_full = True
        if _KILLED.match(text):
            self._tally.killed = True
        elif text.startswith("* Warning: "):
            self._tally.warn(text.removeprefix("* Warning: ").strip())
        elif text.startswith("* ") and self._block is None:
            self._tally.stage = text[2:].strip()

    def _alive(self) -> None:
        """The engine went on: a traceback that a library printed was not its end."""
        if self._recoverable:
            self._tally.failed, self._recoverable = None, False

    # Each of these answers one line of the contract.

    def _started(self, match: re.Match[str]) -> None:
        self._block = None
        self._tally.restart()
        self._tally.stage = match[0].strip()

    def _initial(self, match: re.Match[str]) -> None:
        self._tally.initial = self._count(match[1], match[2]) or self._tally.initial

    def _resumed(self, match: re.Match[str]) -> None:
        self._tally.resumed(_whole(match[1]), _whole(match[2]))

    def _trial(self, match: re.Match[str]) -> None:
        self._alive()
        self._block, self._kl = _whole(match[1]), None
        self._tally.begin(self._block, _whole(match[2]))

    def _divergence(self, match: re.Match[str]) -> None:
        if self._block is not None:
            self._kl = float(match[1])

    def _refusals(self, match: re.Match[str]) -> None:
        if self._block is None:
            return
        counted = self._count(match[1], match[2])
        if counted:
            self._tally.score(self._block, counted, self._kl)
            self._block = None

    def _trial_stopped(self, _match: re.Match[str]) -> None:
        if self._block is not None:
            self._tally.stop(self._block)
            self._block = None

    def _trial_failed(self, match: re.Match[str]) -> None:
        self._tally.failed_trials.add(_whole(match[1]))
        self._block = None

    def _elapsed(self, match: re.Match[str]) -> None:
        self._alive()
        self._block = None
        self._tally.elapsed = seconds(match[1])

    def _remaining(self, match: re.Match[str]) -> None:
        self._block = None
        self._tally.remaining = seconds(match[1])

    def _memory(self, _match: re.Match[str]) -> None:
        self._tally.out_of_memory += 1

    def _selected(self, match: re.Match[str]) -> None:
        self._block = None
        counted = self._count(match[2], match[3])
        if counted:
            self._tally.selected = TrialResult(trial=_whole(match[1]), refusals=counted, kl=_finite(match[4]))

    def _saved(self, match: re.Match[str]) -> None:
        self._alive()
        self._block = None
        self._tally.saved = match[1].strip()

    def _held_out(self, match: re.Match[str]) -> None:
        self._hold(**{match[1]: self._count(match[2], match[3])})

    def _held_out_divergence(self, match: re.Match[str]) -> None:
        self._hold(kl=_finite(match[1]))

    def _ordinary(self, match: re.Match[str]) -> None:
        before, after = self._count(match[1], match[2]), self._count(match[3], match[4])
        self._hold(ordinary_before=before, ordinary_after=after)

    def _interrupted(self, _match: re.Match[str]) -> None:
        self._block = None
        self._tally.interrupted = True

    def _error(self, match: re.Match[str]) -> None:
        self._block = None
        self._tally.failed, self._recoverable = match[1].strip(), False
        self._tally.disk_full |= "No space left on device" in match[1]

    def _finished(self, _match: re.Match[str]) -> None:
        self._alive()
        self._block = None
        self._tally.finished = True

    def _hold(self, **said: Any) -> None:
        self._tally.held_out = (self._tally.held_out or HeldOut()).model_copy(update=said)

    def _count(self, refused: str, prompts: str) -> Count | None:
        counted = count(_whole(refused), _whole(prompts))
        self._tally.unreadable += counted is None
        return counted


_TIME = r"((?:\d+[dhms]\s*)+)"
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_COUNT = r"(\d+)\s*/\s*(\d+)"
_ITEM = r"\s*(?:[*•-]\s*)?"
_KILLED = re.compile(r"(?:.*\bline \d+:\s+\d+ )?Killed\b|.*Out of memory: Killed process")
_LINES: list[tuple[re.Pattern[str], Callable[[LogReader, re.Match[str]], None]]] = [
    (re.compile(pattern), act)
    for pattern, act in (
        (r"bruno engine \S+: removing .*", LogReader._started),
        (rf"{_ITEM}Initial refusals:\s*{_COUNT}\b", LogReader._initial),
        (r"Resuming from trial (\d+) \((\d+) completed trials? found\)", LogReader._resumed),
        (r"Running trial (\d+) of (\d+)\b", LogReader._trial),
        (rf"{_ITEM}KL divergence:\s*{_NUMBER}\s*$", LogReader._divergence),
        (rf"{_ITEM}Refusals:\s*{_COUNT}\s*(?:$|\()", LogReader._refusals),
        (rf"{_ITEM}Refusals:\s*at least {_COUNT} \(stopped\b", LogReader._trial_stopped),
        (rf"{_ITEM}Trial (\d+) failed\b", LogReader._trial_failed),
        (rf"Elapsed time:\s*{_TIME}$", LogReader._elapsed),
        (rf"Estimated remaining time:\s*{_TIME}$", LogReader._remaining),
        (r"(?:\* )?GPU OOM detected \(attempt \d+/\d+\)", LogReader._memory),
        (rf"Auto-selecting trial (\d+) \(Refusals: {_COUNT}, KL divergence: {_NUMBER}\)", LogReader._selected),
        (r"Models Saved:\s*(\S.*)", LogReader._saved),
        (rf"\* Held-out refusals (before|after): {_COUNT}\b", LogReader._held_out),
        (rf"\* Held-out KL divergence: {_NUMBER}", LogReader._held_out_divergence),
        (rf"\* Ordinary prompts refused: {_COUNT} before, {_COUNT} after", LogReader._ordinary),
        (r"Interrupted: \d+ of \d+ trials", LogReader._interrupted),
        (r"Error: (.+)", LogReader._error),
        (r"Optimization finished!", LogReader._finished),
    )
]


class EventReader:
    """events.jsonl: the same facts, typed. Unknown kinds and fields are of a newer engine and are passed over."""

    def __init__(self) -> None:
        self._cutter = LineCutter()
        self._tally = Tally("events")

    @property
    def progress(self) -> Progress:
        return self._tally.snapshot()

    def feed(self, data: bytes) -> None:
        for line in self._cutter.feed(data):
            if line.strip():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            event = json.loads(line)
            kind = event["kind"]
            known = _EVENTS.get(kind)
            if known is not None:
                known(self._tally, event)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._tally.unreadable += 1


def _on_score(tally: Tally, event: dict[str, Any]) -> None:
    tally.score(_int(event, "trial"), _count_of(event, "refusals", "prompts"), _finite(event.get("kl")))


def _on_selected(tally: Tally, event: dict[str, Any]) -> None:
    counted = _count_of(event, "refusals", "prompts")
    tally.selected = TrialResult(trial=_int(event, "trial"), refusals=counted, kl=_finite(event.get("kl")))


def _on_held_out(tally: Tally, event: dict[str, Any]) -> None:
    tally.held_out = HeldOut(
        before=_count_of(event, "before", "prompts"),
        after=_count_of(event, "after", "prompts"),
        kl=_finite(event.get("kl")),
        ordinary_before=_count_of(event, "ordinary_before", "ordinary_prompts"),
        ordinary_after=_count_of(event, "ordinary_after", "ordinary_prompts"),
    )


def _on_times(tally: Tally, event: dict[str, Any]) -> None:
    tally.elapsed, tally.remaining = _finite(event["elapsed_seconds"]), _finite(event["remaining_seconds"])


def _on_notice(tally: Tally, event: dict[str, Any]) -> None:
    if event.get("level") == "warning":
        tally.warn(str(event["text"]))
    else:
        tally.stage = str(event["text"])


def _int(event: dict[str, Any], name: str) -> int:
    if type(event[name]) is not int:
        raise TypeError(f"{name} is no integer")
    return event[name]


def _count_of(event: dict[str, Any], refused: str, prompts: str) -> Count:
    counted = count(_int(event, refused), _int(event, prompts))
    if counted is None:
        raise ValueError(f"{refused} is no count")
    return counted


def _sets(name: str, value: Callable[[dict[str, Any]], Any]) -> Callable[[Tally, dict[str, Any]], None]:
    return lambda tally, event: setattr(tally, name, value(event))


_EVENTS: dict[str, Callable[[Tally, dict[str, Any]], None]] = {
    "run_started": lambda tally, _: tally.restart(),
    "initial_scores": _sets("initial", lambda event: _count_of(event, "refusals", "prompts")),
    "resumed": lambda tally, event: tally.resumed(_int(event, "next_trial"), _int(event, "completed")),
    "trial_started": lambda tally, event: tally.begin(_int(event, "trial"), _int(event, "trials")),
    "trial_scored": _on_score,
    "trial_stopped": lambda tally, event: tally.stop(_int(event, "trial")),
    "trial_failed": lambda tally, event: tally.failed_trials.add(_int(event, "trial")),
    "progress": _on_times,
    "out_of_memory": lambda tally, _: setattr(tally, "out_of_memory", tally.out_of_memory + 1),
    "interrupted": _sets("interrupted", lambda _: True),
    "trial_selected": _on_selected,
    "model_saved": _sets("saved", lambda event: str(event["path"])),
    "held_out": _on_held_out,
    "notice": _on_notice,
    "fallback": lambda tally, event: tally.warn(
        f"{event['method']}: {event['reason']}; continuing with {event['instead']}"
    ),
    "failed": _sets("failed", lambda event: str(event["message"])),
    "finished": _sets("finished", lambda _: True),
}


def seconds(text: str) -> float:
    """`1h 3m` -> 3780.0. Units d, h, m, s."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return float(sum(int(amount) * units[unit] for amount, unit in re.findall(r"(\d+)([dhms])", text)))


def _whole(digits: str) -> int:
    """An integer; absurdly long digits (int() refuses them) are cut: they are no count of anything."""
    return int(digits[:15])


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if number - number == 0 else None
