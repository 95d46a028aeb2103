"""What a run found, for people and programs: `report.json` beside the study and inside the saved model.

Says what was measured and what was used, nothing else; counts stay raw beside their intervals.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bruno import __version__
from bruno.engine.events import HeldOut
from bruno.engine.folder import REPORT_FILE, write_json
from bruno.engine.search.choice import pareto_front
from bruno.engine.search.screening import screening_report
from bruno.engine.search.study import FinishedTrial, finished_trials, stopped_trials

if TYPE_CHECKING:
    from bruno.engine.run import Run


def write_report(
    run: Run,
    chosen: FinishedTrial,
    rule: str,
    saved: Path | None,
    held_out: HeldOut | None,
    folders: Sequence[Path],
) -> dict[str, object]:
    """Write `report.json` into the saved model and these folders; return what was written."""
    trials = finished_trials(run.study)
    report: dict[str, object] = {
        "model": run.settings.model,
        "behaviour": run.behaviour.name,
        "initial_refusals": run.study.user_attrs.get("initial_refusals"),
        "chosen": _trial(chosen) | {"rule": rule, "parameters": chosen.parameters},
        "held_out": held_out.model_dump(exclude={"kind", "time"}) if held_out else None,
        "saved": str(saved) if saved else None,
        "trials": {
            "scored": len(trials),
            "stopped": len(stopped_trials(run.study)),
            "wanted": run.settings.search.trials,
            "together": run.batch,
        },
        "screening": screening_report(run.study),
        "front": [_trial(trial) for trial in pareto_front(trials)],
        "directions": {"used": run.directions.used, "skipped": run.directions.skipped},
        "edited": {"heads": _pairs(run.rules.heads), "experts": _pairs(run.rules.experts)},
        "seconds_of_this_start": run.seconds,
        "settings": run.settings.model_dump(mode="json"),
        "fingerprint": run.identity,
        "machine": {
            "device": str(run.loaded.device),
            "dtype": str(run.loaded.dtype).removeprefix("torch."),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "optuna")},
            "bruno": __version__,
        },
    }
    for folder in (*folders, saved):
        if folder is not None:
            write_json(folder / REPORT_FILE, report)
    return report


def _pairs(chosen: Mapping[int, tuple[int, ...]] | None) -> dict[str, list[int]] | None:
    """Block to its heads or experts; None where all are edited."""
    return None if chosen is None else {str(layer): list(members) for layer, members in sorted(chosen.items())}


def _trial(trial: FinishedTrial) -> dict[str, object]:
    return {"trial": trial.number, **asdict(trial.scores)}
