"""`bruno abliterate`, `bruno worker` and `bruno chat`: the engine in this process, without a provider. Needs the `engine` extra.

The settings are read before torch is looked for, so that a typing error costs no seconds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec

from bruno.errors import InputError

_NEEDED = ("torch", "transformers", "safetensors", "optuna")


def abliterate(arguments: Sequence[str]) -> int:
    """`bruno abliterate MODEL [settings]`: search and save, here."""
    from bruno.settings.load import load

    load(arguments)
    need_engine()
    return engine_command("abliterate", *arguments)


def worker(arguments: Sequence[str]) -> int:
    """`bruno worker --study NAME [--wait SECONDS] [settings]`: score trials of a search that runs elsewhere too."""
    need_engine()
    return engine_command("worker", *arguments)


def worker_help() -> str:
    """What `bruno worker --help` prints."""
    return _WORKER_HELP


_WORKER_HELP = """\
Usage: bruno worker --study NAME [--storage URL] [--wait SECONDS] [--out FOLDER] [--SETTING VALUE]...

Join a search that a run has made (bruno abliterate with the same storage and study) and score its trials until it is
whole. Any number of workers may join, one for each GPU. All that the numbers depend on comes from the study.

  --study NAME      the study's name
  --storage URL     where it is; better in the environment: BRUNO_SEARCH__STORAGE=postgresql://user@host/database
  --wait SECONDS    how long to wait for the study to be made  [0]
  --out FOLDER      a folder of this worker's own, for its log  [worker]

Any setting that is this machine's own may follow (--loading.device cuda:1); bruno abliterate --help lists them. One that
changes the numbers is refused."""


def settings_help() -> str:
    """Every engine setting with its default and its one description, as `bruno abliterate --help` prints it."""
    from bruno.settings.engine import EngineSettings
    from bruno.settings.fields import all_settings, short_names

    short = {full: leaf for leaf, full in short_names().items()}
    lines = ["Usage: bruno abliterate MODEL [--config FILE] [--SETTING VALUE]...", ""]
    lines += ["MODEL is a folder, a hub id or `demo`. Everything runs on this machine.", "", "Settings:"]
    for setting in all_settings().values():
        if setting.name.split(".")[0] not in EngineSettings.model_fields or setting.is_table:
            continue
        name, leaf = setting.name, short.get(setting.name, setting.name)
        also = "" if leaf == name else f", --{leaf}"
        lines.append(f"  --{name}{also}  [{_default(setting.default)}]")
        lines += textwrap.wrap(setting.description, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _default(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value) or '""'


def chat(model: str, beside: str | None = None) -> int:
    """`bruno chat MODEL [--beside OTHER]`: talk to a local model in this terminal."""
    need_engine()
    return engine_command("chat", model, *(("--beside", beside) if beside else ()))


def need_engine() -> None:
    """Raise InputError when the engine's packages are not installed; imports none of them."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"the engine is not installed here ({', '.join(missing)} missing)", fix='pip install "bruno[engine]"'
        )


def engine_command(*arguments: str) -> int:
    """The engine's own command line, in this process; its exit code."""
    from bruno.engine.command import main

    return main(list(arguments))
