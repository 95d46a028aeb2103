"""Export trials of a run that is over: any by number, several from one loading of the model.

Re-opens the run's folder (the caller holds its lock) with the settings that its log recorded; the study's fingerprint
is checked before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bruno.engine.events import Emit, RunStarted
from bruno.engine.export.adapter import save_adapter
from bruno.engine.recipe import recipe_of, write_recipe
from bruno.engine.reproduce import open_run
from bruno.engine.search.storage import open_study
from bruno.engine.search.study import FinishedTrial, finished_trials
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings, hide_password


def settings_of(folder: Path, *, trust_remote_code: bool = False) -> EngineSettings:
    """The settings of a run, from the last start in its log. Its folder may have moved since.

    Raises:
        InputError: no run is there, its settings are not this version's, or it let the repository's code run and nobody
            says so now (the folder may be another's).
    """
    from bruno.engine.explain import read_events

    started = read_events(folder).last(RunStarted)
    if started is None:
        raise InputError(f"{folder} holds no run", fix="Name the folder that was given as --out")
    try:
        settings = EngineSettings.model_validate(started.settings)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"The settings of the run in {folder} cannot be used "
            f"({'.'.join(map(str, problem['loc']))}: {problem['msg']})",
            fix="Start it again with this version of bruno",
        ) from error
    if settings.trust_remote_code and not trust_remote_code:
        raise InputError(
            f"The run in {folder} let the Python code of {settings.model} run, and its log alone may not",
            fix="Say --trust-remote-code",
        )
    export = settings.export.model_copy(update={"save": True})
    search = settings.search.model_copy(update={"storage": _with_password(settings.search.storage)})
    return settings.model_copy(update={"out": str(folder), "export": export, "search": search})


def _with_password(recorded: str) -> str:
    """The storage with the password that this machine's settings have for it: a log records none."""
    from bruno.settings.load import load

    here = load([]).search.storage
    return here if recorded and hide_password(here) == recorded else recorded


def export_again(
    folder: Path, settings: EngineSettings, numbers: Sequence[int], emit: Emit, *, name: str = "", adapter: bool = False
) -> list[Path]:
    """Save these trials of the run in `folder`, one after the other; a trial that was saved before is named again.

    Args:
        settings: from `settings_of`.
        numbers: trials as the log counts them, from 1.
        name: folder name of the first ("" = as the run's settings say); a name that is taken gets the trial's number.
        adapter: also write each as a PEFT adapter.

    Returns:
        The models' folders, in the order of the numbers.

    Raises:
        InputError: a number is no scored trial of the study.
        StudyMismatch: the model, the prompts or the engine are not those of the run any more.
        ExportFailed: the disk.
    """
    if name:
        if Path(name).name != name or name.startswith("."):
            raise InputError(f"{name!r} is no folder name", fix="Give one word; models are saved in the run's folder")
        settings = settings.model_copy(update={"export": settings.export.model_copy(update={"name": name})})
    wanted = trials_by_number(settings, folder, list(dict.fromkeys(numbers)), emit)
    run = open_run(settings, folder, emit)
    saved = []
    for trial in wanted:
        rule = "a person, by number"
        path = run.save(trial, rule)
        if path is None:  # `settings_of` turned saving on
            raise BrunoError(f"Trial {trial.number} was not saved")
        write_recipe(recipe_of(run, trial, rule, path), path)
        if adapter:
            save_adapter(run, trial, rule, path)
        saved.append(path)
    return saved


def trials_by_number(settings: EngineSettings, folder: Path, numbers: Sequence[int], emit: Emit) -> list[FinishedTrial]:
    """Scored trials of the run's study, found before anything is loaded.

    Raises:
        InputError: there is no study, or no scored trial of a number; the message lists which there are.
        StudyMismatch: as `open_study`.
    """
    from bruno.engine.data.behaviours import load_behaviour
    from bruno.engine.data.prompts import load_prompt_sets
    from bruno.engine.folder import STUDY_FILE
    from bruno.engine.model.loading import locate
    from bruno.engine.place import place_of_study
    from bruno.engine.search.fingerprint import fingerprint

    if not settings.search.storage and not (folder / STUDY_FILE).is_file():
        raise InputError(f"{folder} has no {STUDY_FILE}, so no trial can be restored")
    behaviour = load_behaviour(settings)
    prompts = load_prompt_sets(settings, behaviour, emit)
    identity = fingerprint(settings, behaviour, prompts, locate(settings))
    study = open_study(*place_of_study(settings, behaviour, folder), identity)
    found = {trial.number: trial for trial in finished_trials(study)}
    missing = [number for number in numbers if number not in found]
    if missing:
        raise InputError(
            f"No scored trial {', '.join(map(str, missing))} in the study of {folder}",
            fix=f"It has {ranges(list(found)) or 'none'}",
        )
    return [found[number] for number in numbers]


def ranges(numbers: Sequence[int]) -> str:
    """`[1, 2, 3, 7]` -> `1 to 3, 7`: ascending numbers with runs joined."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
