"""Whether a run's prompts can be read where it will run, asked before anything is rented. Downloads no data."""

from __future__ import annotations

from typing import Any

from bruno.engine.data.behaviours import load_behaviour
from bruno.engine.data.check import check_source, sources_of
from bruno.engine.data.hub import HubUnreachable
from bruno.errors import Denied, InputError
from bruno.settings.engine import EngineSettings


def check_prompts(engine: dict[str, Any]) -> tuple[str, ...]:
    """What could not be checked, for the card; nothing when every source can be read.

    Args:
        engine: the engine settings that somebody gave, as they will travel.

    Raises:
        InputError: the behaviour or a source is written wrongly.
        Denied: a source is known to fail on the rented machine: absent, gated, or a file that is only here.
    """
    settings = EngineSettings.model_validate(engine)
    if settings.behaviour.endswith(".toml"):
        raise _only_here(f"The behaviour file {settings.behaviour}")
    unknown: list[str] = []
    for source in sources_of(settings, load_behaviour(settings)):
        if source.path is not None:
            raise _only_here(f"The prompt source {source.source}")
        if unknown:  # a hub that does not answer for one data set is not waited for again
            continue
        try:
            check_source(source)
        except HubUnreachable as error:
            unknown.append(f"prompts: not checked. {error}")
        except InputError as error:
            raise Denied(f"the run would fail after renting: {error.message}", fix=error.fix) from error
    return tuple(unknown)


def _only_here(what: str) -> Denied:
    return Denied(
        f"{what} is on this machine, where the rented one cannot read it",
        fix="Name a data set on the hub (it may be private), or run bruno abliterate here",
    )
