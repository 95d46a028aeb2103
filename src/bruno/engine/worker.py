"""`worker --study NAME`: join a study that a run has made, and score its trials until it is whole.

Everything that the numbers depend on comes from the study; what belongs to this machine (device, batch size, folder, the
storage's address) comes from its own settings. Works in its own folder; chooses and saves nothing: that is the run's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from pydantic import ValidationError

from bruno.engine.crew import worker_name
from bruno.engine.events import Emit, Finished, Notice
from bruno.engine.search.board import look
from bruno.engine.search.storage import NoStudy, join_study
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings, hide_password


@dataclass(frozen=True)
class Joining:
    """How a worker takes part.

    Args:
        given: the settings that were said here, nested; they win over the study's.
        wait: seconds that the study and its storage are waited for.
        deals: whether it deals out the trials: the first worker that a run on this machine starts.
        kept: the folder that keeps the directions for all workers of this machine (None: its own).
    """

    given: Mapping[str, Any]
    wait: float = 0.0
    deals: bool = False
    kept: Path | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Storage and study, which must have been said."""
        search = self.given.get("search", {})
        for name, what in (("storage", "storage"), ("study", "study")):
            if not search.get(name):
                example = "BRUNO_SEARCH__STORAGE=postgresql://user@host/db" if name == "storage" else "--study NAME"
                raise InputError(f"A worker needs the {what} that it is to join", fix=f"Say {example}")
        return search["storage"], search["study"]


def work(joining: Joining, folder: Path, emit: Emit) -> bool:
    """Join and work, in `folder`, whose lock is held.

    Returns:
        True when the study is whole, False when it was asked to stop first.

    Raises:
        InputError: no such study, or one that was made from something else (`StudyMismatch`, which names what differs).
        BrunoError: the storage or the model.
    """
    from bruno.engine.data.behaviours import load_behaviour
    from bruno.engine.data.prompts import load_prompt_sets
    from bruno.engine.model.loading import load, locate
    from bruno.engine.place import Team, announce
    from bruno.engine.run import Run
    from bruno.engine.search.fingerprint import fingerprint
    from bruno.engine.search.storage import check_fingerprint

    began = time.monotonic()
    study = joined(joining, emit)
    settings = settings_here(study, joining.given, folder)
    behaviour = load_behaviour(settings)
    announce(settings, behaviour, [], folder, emit)
    prompts = load_prompt_sets(settings, behaviour, emit)
    check_fingerprint(study, fingerprint(settings, behaviour, prompts, locate(settings)))  # before gigabytes are loaded
    name, wanted = worker_name(), settings.search.trials
    decided = len(look(study, wanted).decided)
    text = f"Joined the study {study.study_name} as worker {name}: {decided} of {wanted} trials have their result"
    emit(Notice(text=text))
    if decided < wanted:
        team = Team(name, joining.kept or folder, deals=joining.deals)
        if not Run(settings, behaviour, folder, emit, prompts, load(settings, emit), team=team).search():
            return False
    emit(Finished(seconds=time.monotonic() - began))
    return True


def joined(joining: Joining, emit: Emit) -> optuna.Study:
    """The study, waited for as long as was said; opened with the heartbeat that its run has set."""
    storage, name = joining.place
    until, said = time.monotonic() + joining.wait, False
    while True:
        try:
            study = join_study(storage, name, heartbeat=1)
            seconds = int(study.user_attrs["settings"]["search"]["heartbeat"])
            return join_study(storage, name, heartbeat=seconds)
        except BrunoError as error:
            left = until - time.monotonic()
            if left <= 0 or (isinstance(error, InputError) and not isinstance(error, NoStudy)):
                raise
            if not said:
                emit(Notice(text=f"Waiting for the study {name} in {hide_password(storage)}: {error.message}"))
                said = True
            time.sleep(min(2.0, left))


def settings_here(study: optuna.Study, given: Mapping[str, Any], folder: Path) -> EngineSettings:
    """The study's settings with those that were said here.

    Raises:
        InputError: the study's are another version's, or it lets the model's own code run and nobody says so here.
    """
    stored = study.user_attrs["settings"]
    merged = {**merge(stored, given), "out": str(folder)}
    merged["trust_remote_code"] = bool(given.get("trust_remote_code", False))
    merged["search"] = {**merged["search"], "workers": 1}
    try:
        settings = EngineSettings.model_validate(merged)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"The settings of the study {study.study_name} cannot be used "
            f"({'.'.join(map(str, problem['loc']))}: {problem['msg']})",
            fix="Workers and the run need the same version of bruno",
        ) from None
    if stored.get("trust_remote_code") and not settings.trust_remote_code:
        raise InputError(
            f"The study {study.study_name} lets the Python code of {settings.model} run, and it alone may not",
            fix="Say --trust-remote-code",
        )
    return settings


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the second's values first."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else json.loads(json.dumps(value))
    return merged
