"""Where the human log and events.jsonl tell different stories: each difference names both sides. Pure."""

from __future__ import annotations

from bruno.runs.progress import Count, Disagreement, Progress

KL_ROUNDING = 0.5e-4 + 1e-9
"""The log shows KL to four decimals."""


def compare(log: Progress, events: Progress, *, at_rest: bool) -> list[Disagreement]:
    """Disagreements between the two readings.

    Args:
        at_rest: the process has ended and both files were read to the end. Only then is something that one says and the
            other does not a disagreement: while the run goes on, one file is simply read a moment later.
    """
    found: list[Disagreement] = []

    def differ(subject: str, said: object, against: object) -> None:
        if said is None and against is None:
            return
        if (said is None or against is None) and not at_rest:
            return
        if said != against:
            found.append(
                Disagreement(
                    subject=subject, source="log", said=_words(said), other_source="events", against=_words(against)
                )
            )

    differ("initial refusals", log.initial_refusals, events.initial_refusals)
    ours, theirs = ({trial.trial: trial for trial in side.history} for side in (log, events))
    for number in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(number), theirs.get(number)
        differ(f"refusals of trial {number}", _counted(one), _counted(other))
        if one and other and not _same_kl(one.kl, other.kl):
            differ(f"KL divergence of trial {number}", one.kl, other.kl)
    differ("model saved", log.model_saved, events.model_saved)
    if log.selected and events.selected:
        differ("selected trial", log.selected.trial, events.selected.trial)
    if at_rest:
        for subject in ("finished", "interrupted", "trials", "completed", "stopped_trials"):
            differ(subject, getattr(log, subject), getattr(events, subject))
    return found


def _counted(trial: object) -> Count | None:
    return getattr(trial, "refusals", None)


def _same_kl(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= KL_ROUNDING


def _words(value: object) -> str:
    if value is None:
        return "nothing"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
