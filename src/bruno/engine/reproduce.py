"""Make a saved model again from its `reproduce.toml`, and say whether it came out the same.

Works in a run folder of its own. What the file says is compared before it is acted on: a model or prompts other than
the recorded ones end it before anything is loaded. Code of the model's repository runs only when the person says so
here; the file's word is not enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bruno.engine.events import Emit, Notice
from bruno.engine.recipe import (
    Check,
    Recipe,
    compare_scores,
    compare_tables,
    hashes,
    read_recipe,
    versions,
    without_model,
)
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings

if TYPE_CHECKING:
    from bruno.engine.run import Run
    from bruno.engine.search.space import Space


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        file: a `reproduce.toml`, or a folder that holds one.
        out: the run folder to work in, whose lock is held.
        model: where the base model lies here ("" = as recorded).
        behaviour: where the behaviour's file lies here ("" = as recorded).
        search: repeat the whole search instead of applying the recorded trial.
        trust_remote_code: allow the model repository's own code, where the recorded run did.
    """

    file: Path
    out: Path
    model: str = ""
    behaviour: str = ""
    search: bool = False
    trust_remote_code: bool = False


def reproduce(wish: Wish, emit: Emit) -> bool | None:
    """Do it; every comparison is a notice, a difference a warning.

    Returns:
        True when everything that decides is the same, False when something differs, None when it was interrupted.

    Raises:
        BrunoError: the file cannot be used, or the model cannot be loaded here.
    """
    recipe = read_recipe(wish.file)
    settings = settings_for(recipe, wish)
    checks = compare_tables("version of", recipe.versions, versions(), decides=False)
    say(checks, emit)
    given = compare_inputs(recipe, settings, emit)
    say(given, emit)
    if not all(check.same for check in given):
        return conclude([*checks, *given], emit, "The inputs are not the recorded ones, so nothing was applied")
    results = _search_again(recipe, settings, wish.out, emit) if wish.search else _apply(recipe, settings, wish, emit)
    if results is None:
        return None
    say(results, emit)
    return conclude([*checks, *given, *results], emit)


def settings_for(recipe: Recipe, wish: Wish) -> EngineSettings:
    """The recorded settings with what belongs to this machine and this person.

    Raises:
        InputError: the recorded run trusted the repository's code and nobody does here, or the folder holds a run.
    """
    recorded = recipe.settings
    if recorded.trust_remote_code and not wish.trust_remote_code:
        raise InputError(
            f"The recorded run let the Python code of {recorded.model} run, and this file alone may not",
            fix="Read that code, then say --trust-remote-code",
        )
    if any(wish.out.glob("directions.safetensors")) and not wish.search:
        raise InputError(f"{wish.out} holds a run already", fix="Choose another --out: directions must be made anew")
    update = {
        "out": str(wish.out),
        "model": wish.model or recorded.model,
        "revision": "" if wish.model else recipe.model.commit or recorded.revision,
        "behaviour": wish.behaviour or recorded.behaviour,
        # Another's storage is not ours to write to, and a study of that name elsewhere is not this one.
        "search": recorded.search.model_copy(update={"storage": "", "study": ""}),
        "export": recorded.export.model_copy(update={"save": bool(recipe.weights), "adapter": False}),
    }
    return recorded.model_copy(update=update)


def compare_inputs(recipe: Recipe, settings: EngineSettings, emit: Emit) -> list[Check]:
    """The model's digest and every part of the fingerprint, before anything is loaded."""
    from bruno.engine.data.behaviours import load_behaviour
    from bruno.engine.data.prompts import load_prompt_sets
    from bruno.engine.model.loading import locate
    from bruno.engine.search.fingerprint import fingerprint, model_digest

    behaviour = load_behaviour(settings)
    source = locate(settings)
    found = fingerprint(settings, behaviour, load_prompt_sets(settings, behaviour, emit), source)
    model = compare_tables("model", {"digest": recipe.model.digest}, {"digest": model_digest(source)}, decides=True)
    return model + compare_tables("input", recipe.identity, without_model(found), decides=True)


def open_run(settings: EngineSettings, folder: Path, emit: Emit) -> Run:
    """A run's parts with its model loaded, for work on what was decided before. Nothing is announced or searched."""
    from bruno.engine.data.behaviours import load_behaviour
    from bruno.engine.data.prompts import load_prompt_sets
    from bruno.engine.model.loading import load
    from bruno.engine.run import Run

    behaviour = load_behaviour(settings)
    return Run(settings, behaviour, folder, emit, load_prompt_sets(settings, behaviour, emit), load(settings, emit))


def _apply(recipe: Recipe, settings: EngineSettings, wish: Wish, emit: Emit) -> list[Check]:
    """Directions from the prompts, the recorded trial's edit, its scores, and the saved model's bytes."""
    from bruno.engine.scoring.scores import Scores
    from bruno.engine.search.study import FinishedTrial

    run = open_run(settings, wish.out, emit)
    run.warn_of_little_room()
    parameters = dict(recipe.trial.parameters)
    check_parameters(run.space, parameters)
    with run.session:
        scorer = run.scorer(run.prompts.bad_search, run.prompts.good_search)
        scores = scorer.score([run.space.edit(parameters)])[0]
    results = compare_scores(recipe.trial, asdict(scores))
    if recipe.weights:
        trial = FinishedTrial(index=recipe.trial.number - 1, parameters=parameters, scores=Scores(**asdict(scores)))
        saved = run.save(trial, f"the recorded choice ({recipe.trial.rule})")
        results += _compare_weights(recipe, saved)
    return results


def check_parameters(space: Space, parameters: dict[str, float | str]) -> None:
    """Raise InputError unless these are exactly the parameters of a trial of this space, numbers where it has numbers."""
    numbers = set(space.ranges())
    wanted = numbers | {"direction_scope"}
    odd = sorted(wanted ^ set(parameters))
    if odd:
        raise InputError(f"trial.parameters does not fit the model: {', '.join(odd)} is missing or unknown")
    wrong = sorted(name for name in numbers if not isinstance(parameters[name], float))
    if wrong:
        raise InputError(f"trial.parameters.{wrong[0]} must be a number")
    if parameters["direction_scope"] not in ("global", "per layer"):
        raise InputError("trial.parameters.direction_scope must be global or per layer")


def _search_again(recipe: Recipe, settings: EngineSettings, out: Path, emit: Emit) -> list[Check] | None:
    """The whole run; its chosen trial and saved model against the recorded ones."""
    from bruno.engine.explain import read_report
    from bruno.engine.run import run

    if not run(settings, out, emit):
        return None
    report = read_report(out)
    if report is None or report.chosen is None:
        raise BrunoError(f"The search in {out} left no report of its choice")
    found, recorded = report.chosen, recipe.trial
    trial = compare_tables("chosen", {"trial": str(recorded.number)}, {"trial": str(found.trial)}, decides=True)
    parameters = compare_tables(
        "parameter",
        {name: str(value) for name, value in recorded.parameters.items()},
        {name: str(value) for name, value in found.parameters.items()},
        decides=True,
    )
    weights = _compare_weights(recipe, Path(report.saved) if report.saved else None) if recipe.weights else []
    scores = compare_scores(recorded, {**(found.model_extra or {}), **found.model_dump()})
    return [*trial, *parameters, *scores, *weights]


def _compare_weights(recipe: Recipe, saved: Path | None) -> list[Check]:
    from bruno.engine.model.checkpoint import weight_files

    found = hashes(saved, weight_files(saved)) if saved else {}
    return compare_tables("sha256 of", dict(recipe.weights), found, decides=True)


def say(checks: Sequence[Check], emit: Emit) -> None:
    """Each difference by itself; what is the same in one line."""
    same = [check.name for check in checks if check.same]
    if same:
        emit(Notice(text=f"The same: {', '.join(same)}"))
    for check in checks:
        if not check.same:
            emit(Notice(text=check.text(), level="warning"))


def conclude(checks: Sequence[Check], emit: Emit, why: str = "") -> bool:
    """The verdict, as the last notice."""
    differing = [check.name for check in checks if check.decides and not check.same]
    if not differing:
        others = [check.name for check in checks if not check.same]
        emit(Notice(text="Reproduced" + (f", though these differ: {', '.join(others)}" if others else "")))
        return True
    reason = f". {why}" if why else ""
    emit(Notice(text=f"Not reproduced: {', '.join(differing)} differ{reason}", level="warning"))
    return False
