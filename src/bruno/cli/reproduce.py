"""`bruno reproduce FILE`: make a saved model again on this machine and compare. Needs the `engine` extra."""

from __future__ import annotations

from pathlib import Path

from bruno.cli.engine import engine_command, need_engine


def reproduce(file: Path, *, out: Path, search: bool, model: str, behaviour: str, trust_remote_code: bool) -> int:
    """Hand the file to the engine, in this process; 0 only when everything came out the same.

    Raises:
        InputError: the file cannot be used (told before the engine is looked for), or the engine is not installed.
    """
    from bruno.engine.recipe import read_recipe

    read_recipe(file)
    need_engine()
    arguments = [str(file), "--out", str(out)]
    arguments += ["--model", model] if model else []
    arguments += ["--behaviour", behaviour] if behaviour else []
    arguments += ["--search"] if search else []
    arguments += ["--trust-remote-code"] if trust_remote_code else []
    return engine_command("reproduce", *arguments)
