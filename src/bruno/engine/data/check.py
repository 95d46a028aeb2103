"""Can every prompt source of a run be read? Asked before anything is rented, and before anything is downloaded.

Reads names: whether local files exist, and what the hub says of a data set (`dataset_info`, `auth_check`). Downloads no
data; imports neither torch nor `datasets`, so the console can call it.
"""

from __future__ import annotations

from collections.abc import Iterable

from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import DatasetInfo

from bruno.engine.data.behaviours import Behaviour
from bruno.engine.data.hub import HUB_ERRORS, SECONDS, check_size, unreadable
from bruno.engine.data.source import DEMO, SHIPPED, SUFFIXES, Source
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings


def check_sources(settings: EngineSettings, behaviour: Behaviour) -> list[str]:
    """What stands in the way of reading the run's prompts: one line for each problem, none when all can be read.

    A hub that cannot be reached is a problem too: then nothing is known about its data sets.
    """
    try:
        sources = sources_of(settings, behaviour)
    except InputError as error:
        return [str(error)]
    problems: list[str] = []
    for source in sources:
        try:
            check_source(source)
        except InputError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def sources_of(settings: EngineSettings, behaviour: Behaviour) -> list[Source]:
    """Every prompt source that a run with these settings reads, each once.

    Raises:
        InputError: a setting names a source that cannot be parsed.
    """
    data, protection = settings.data, settings.protection
    named: list[Source] = []
    for own, side in ((data.bad, behaviour.bad), (data.good, behaviour.good)):
        named += [Source.parse(own)] if own else [side.train, side.search, side.held_out]
    if settings.scoring.held_out:
        named += [part.prompts for part in behaviour.evaluation.values()]
    wanted: list[str] = []
    if protection.orthogonalize_directions:
        wanted += [protection.helpful, protection.plain]
    if protection.sacred_directions:
        wanted += [protection.sacred, protection.plain]
    return list(dict.fromkeys([*named, *map(Source.parse, wanted)]))


def check_source(source: Source, api: HfApi | None = None) -> None:
    """Whether one source can be read, as far as that can be known without reading it.

    Raises:
        InputError: it cannot, or nobody can say; which one, and what to do.
    """
    if source.source == DEMO or source.source.startswith(SHIPPED):
        from bruno.engine.data.prompts import read

        read(source)
    elif source.path is not None:
        _check_local(source)
    else:
        _check_hub(source, api or HfApi())


def _check_local(source: Source) -> None:
    path = source.path
    if path is None or not path.exists():
        raise InputError(f"There is no prompt file {source.source}", fix="Check the path")
    if path.is_dir() and not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise InputError(f"The folder {path} holds no data set", fix="Write one with save_to_disk, or name a file")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise InputError(f"Prompts cannot be read from {path}", fix=f"Files may be {', '.join(SUFFIXES)}")


def _check_hub(source: Source, api: HfApi) -> None:
    try:
        info = api.dataset_info(source.source, timeout=SECONDS, files_metadata=True)
        if info.gated:
            api.auth_check(source.source, repo_type="dataset")
    except hub_errors.HFValidationError as error:
        raise InputError(f"{source.source!r} is no name of a data set", fix="Write owner/name, or a path") from error
    except HUB_ERRORS as error:
        raise unreadable(source, error) from error
    _check_configuration(source, info)
    _check_script(source, info)
    check_size(source, info)


def _check_configuration(source: Source, info: DatasetInfo) -> None:
    """Whether the configuration is one of those that the data set's card lists, where it lists any."""
    listed: Iterable[object] = (info.card_data or {}).get("configs") or ()
    configs = {str(each["config_name"]): each for each in listed if isinstance(each, dict) and "config_name" in each}
    if source.config and configs and source.config not in configs:
        raise InputError(
            f"The data set {source.source} has no configuration {source.config}", fix=f"It has {', '.join(configs)}"
        )
    chosen = "default" in configs or any(each.get("default") for each in configs.values())
    if not source.config and len(configs) > 1 and not chosen:
        raise InputError(
            f"The data set {source.source} has several configurations", fix=f"Add config=: {', '.join(configs)}"
        )


def _check_script(source: Source, info: DatasetInfo) -> None:
    """Data sets that are a program are not read: `datasets` runs none since version 4."""
    script = f"{source.source.rpartition('/')[2]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise InputError(
            f"The data set {source.source} is a program ({script}), which is never run",
            fix="Name a copy of it in plain files",
        )
