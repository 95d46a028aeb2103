"""Where a run has its place: the study's storage and name, its process among the workers, how its story begins.

Small things that a run, a worker and the commands on a finished run have in common. Imports no torch.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bruno import __version__
from bruno.engine.data.behaviours import Behaviour, Default
from bruno.engine.events import Emit, Notice, RunStarted
from bruno.engine.folder import STUDY_FILE
from bruno.settings.engine import EngineSettings


@dataclass(frozen=True)
class Team:
    """A process's place among the workers of a shared study.

    Args:
        name: unique among them.
        kept: the folder that keeps the directions for all workers of this machine.
        deals: whether it deals out the study's trials.
    """

    name: str
    kept: Path
    deals: bool


def place_of_study(settings: EngineSettings, behaviour: Behaviour, folder: Path) -> tuple[str, str]:
    """Storage and name of a run's study: the settings', else an SQLite file in its folder, by model and behaviour."""
    name = settings.search.study or f"{short_name(settings.model)}.{behaviour.name}"
    return settings.search.storage or str(folder / STUDY_FILE), name


def short_name(model: str) -> str:
    """The last part of a hub id or path, as a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(model.rstrip("/")).name).strip("-.") or "model"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took, whether or not it succeeded."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = round(time.monotonic() - began, 1)


def announce(settings: EngineSettings, behaviour: Behaviour, defaults: list[Default], folder: Path, emit: Emit) -> None:
    """Say what is about to run, and which defaults of the behaviour were taken."""
    emit(
        RunStarted(
            version=__version__,
            model=settings.model,
            behaviour=behaviour.name,
            out=str(folder),
            seed=settings.seed,
            pid=os.getpid(),
            settings=settings.model_dump(mode="json"),
        )
    )
    if defaults:
        taken = ", ".join(f"{default.setting} = {default.value}" for default in defaults)
        emit(Notice(text=f"Defaults of {behaviour.name}, which any setting of yours replaces: {taken}"))
