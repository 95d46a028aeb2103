"""An explanation as lines for a person: sections in the order of the run, one fact a line. Pure.

The lines hold text from the run's folder as it is; the command that shows them sanitises each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from bruno.engine.events import duration, number
from bruno.engine.explain import Explanation, HeldOutScores, Trial


def lines(run: Explanation) -> list[str]:
    """Everything that is known about a run, section by section; a section without facts is left out."""
    sections = {
        "": _head(run),
        "Settings that are not the engine's defaults": [f"{k} = {v}" for k, v in run.changed_settings.items()],
        "Defaults taken": run.defaults,
        "Directions, used": run.directions.used if run.directions else [],
        "Directions, skipped": [f"{k}: {v}" for k, v in (run.directions.skipped if run.directions else {}).items()],
        "Fallbacks": [
            f"{each['method']}: {each['reason']}; continued with {each['instead']}" for each in run.fallbacks
        ],
        "Warnings": run.warnings,
        "Search": _search(run),
        "Front (no trial beats these)": list(table(run.front, run.chosen)),
        "Chosen trial": _chosen(run.chosen),
        "Held out (prompts that neither the directions nor the search saw)": _held_out(run.held_out),
        "Saved": run.saved,
        "Time of the last start": [f"{stage}: {duration(seconds)}" for stage, seconds in run.seconds.items()],
        "Also reported": [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in run.further.items()],
    }
    out: list[str] = []
    for title, facts in sections.items():
        if facts:
            out += ["", title] if title else []
            out += [f"  {fact}" if title else fact for fact in facts]
    return out


def table(trials: Iterable[Trial], chosen: Trial | None = None) -> Iterable[str]:
    """Trials as aligned rows: number, refusals, KL; the chosen one is marked."""
    trials = list(trials)
    if trials:
        yield f"{'trial':>7}  {'refused':>11}  {'KL (nats)':>10}"
    for trial in trials:
        mark = "  <- chosen" if chosen and chosen.trial == trial.trial else ""
        yield f"{trial.trial:>7}  {f'{trial.refusals}/{trial.prompts}':>11}  {trial.kl:>10.4f}{mark}"


def _head(run: Explanation) -> list[str]:
    facts = [f"{run.folder}: removing {run.behaviour} from {run.model}", f"State: {run.state}"]
    if run.loaded:
        facts.append(f"Loaded: {run.loaded}")
    if run.machine:
        facts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in run.machine.items()))
    if run.unread:
        facts.append(f"{run.unread} lines of the event log are no whole events and were left out")
    return facts


def _search(run: Explanation) -> list[str]:
    facts = []
    if run.initial_refusals:
        facts.append(f"untouched model: {run.initial_refusals[0]}/{run.initial_refusals[1]} refused")
    if run.trials:
        wanted = f" of {run.trials['wanted']}" if "wanted" in run.trials else ""
        together = f", {run.trials['together']} together" if "together" in run.trials else ""
        facts.append(f"trials scored: {run.trials.get('scored', 0)}{wanted}{together}")
    if run.trials.get("stopped"):
        facts.append(f"trials stopped because another was better in refusals and KL: {run.trials['stopped']}")
    return facts + [f"trial {trial} failed: {reason}" for trial, reason in run.failed_trials.items()]


def _chosen(trial: Trial | None) -> list[str]:
    if trial is None:
        return []
    return [
        f"trial {trial.trial}: {trial.refusals}/{trial.prompts} refused, KL {trial.kl:.4f} nats",
        *([f"rule: {trial.rule}"] if trial.rule else []),
        *(f"{name} = {number(value)}" for name, value in trial.parameters.items()),
    ]


def _held_out(held: HeldOutScores | None) -> list[str]:
    if held is None:
        return []

    def share(interval: tuple[float, float]) -> str:
        return f"95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"

    answered = "" if held.kl_answered is None else f", {held.kl_answered:.4f} where the original answers"
    further = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in (held.model_extra or {}).items()]
    return [
        f"refused before: {held.before}/{held.prompts} ({share(held.before_interval)})",
        f"refused after: {held.after}/{held.prompts} ({share(held.after_interval)})",
        f"KL divergence: {held.kl:.4f} nats{answered}",
        f"ordinary prompts refused: {held.ordinary_before}/{held.ordinary_prompts} before, "
        f"{held.ordinary_after}/{held.ordinary_prompts} after",
        *further,
    ]
