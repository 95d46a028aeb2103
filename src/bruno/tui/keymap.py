"""The keys, by binding id, and the user's own from keymap.toml beside config.toml (BRUNO_KEYMAP names another file).

    [keys]
    quit = "q,ctrl+x"

The confirmation has no entry here: its keys are not to be moved.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from textual.binding import Binding, BindingType

BINDINGS: list[BindingType] = [
    Binding("f1,question_mark", "help", "Help", id="help"),
    Binding("f2", "pane('talk')", "Talk", id="talk"),
    Binding("f3", "pane('run')", "Run", id="run"),
    Binding("f4", "pane('instances')", "Instances", id="instances"),
    Binding("f5", "pane('log')", "Log", id="log"),
    Binding("colon", "command_line(':')", "Command", id="command", show=False),
    Binding("slash", "command_line('/')", "Filter", id="filter", show=False),
    Binding("i", "command_line('')", "Type", id="type", show=False),
    Binding("left_square_bracket", "next_run(-1)", "Previous run", id="previous_run", show=False),
    Binding("right_square_bracket", "next_run(1)", "Next run", id="next_run", show=False),
    Binding("r", "refresh_now", "Read again", id="refresh", show=False),
    Binding("p", "pause_log", "Pause the log", id="pause", show=False),
    Binding("q", "quit", "Quit", id="quit"),
]
"""What the console listens to. No binding here has priority: a confirmation that is open hides them all."""


def read_keymap(config: Path) -> tuple[dict[str, str], str]:
    """The user's keys by binding id, and one line about what is wrong with the file ("" = nothing; the rest is used)."""
    path = Path(os.environ.get("BRUNO_KEYMAP") or config.parent / "keymap.toml")
    if not path.is_file():
        return {}, f"no keymap file at {path}" if os.environ.get("BRUNO_KEYMAP") else ""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("keys", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {}, f"{path} cannot be read, the usual keys are in force: {error}"
    known = {binding.id for binding in Binding.make_bindings(BINDINGS)}
    good = {str(name): key for name, key in keys.items() if name in known and isinstance(key, str) and key}
    bad = sorted(set(keys) - set(good))
    return good, f"{path}: no such key name, or no key given: {', '.join(bad)}" if bad else ""
