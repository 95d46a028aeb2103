"""`bruno export FOLDER --trial N`: save trials of a run that lies on this machine. Needs the `engine` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bruno.cli.engine import engine_command, need_engine
from bruno.errors import InputError


def export(folder: Path, trials: Sequence[int], *, name: str, adapter: bool, trust_remote_code: bool) -> int:
    """Hand the trials to the engine, in this process.

    Raises:
        InputError: no trial was named, or the engine is not installed.
    """
    if not trials:
        raise InputError("no trial was named", fix="Say --trial with its number, as often as you like")
    need_engine()
    arguments = [str(folder), *(part for trial in trials for part in ("--trial", str(trial)))]
    arguments += ["--name", name] if name else []
    arguments += ["--adapter"] if adapter else []
    arguments += ["--trust-remote-code"] if trust_remote_code else []
    return engine_command("export", *arguments)
