"""Keys, commands and what can be said. Drawn from the bindings and the command table, so it cannot go out of date."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from bruno.tui.commands import available
from bruno.tui.keymap import BINDINGS
from bruno.tui.modal import Modal

SAID = """\
Type what you want, in a sentence:
  start qwen32b on an H200
  start demo on an H200 with 60 trials
  how is it going
  what is running
  stop it
  exec nvidia-smi on 101    a shell line on an instance
  !! df -h                  the same on the one that runs
  ! git status              on this machine
What costs money or cannot be undone shows a plan first and waits for the word.

In the typing line: esc leaves it (then single keys work), up and down bring back what was typed,
:command runs a command, /text filters the log and the instances."""


class HelpScreen(Modal[None]):
    """Closed by esc, q or F1."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,f1,question_mark", "leave", "Close", show=False)]

    def __init__(self, keymap: dict[str, str], *, readonly: bool) -> None:
        super().__init__()
        self._keymap = keymap
        self._readonly = readonly

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="box") as box:
            box.border_title = "Help"
            box.border_subtitle = "esc closes"
            yield Static(self._text(), markup=False)

    def _text(self) -> str:
        lines = [SAID, "", "Keys (the last word is the name in keymap.toml)"]
        for name, bindings in _by_id().items():
            keys = Binding.make_bindings(
                [replace(bindings[0], key=self._keymap[name])] if name in self._keymap else bindings
            )
            shown = " ".join(self.app.get_key_display(each) for each in keys)
            lines.append(f"  {shown:<14}{bindings[0].description:<16}{name}")
        lines.append(f"  {'ctrl+p':<14}Palette")
        lines += ["", "Commands"]
        for command in available(readonly=self._readonly):
            name = f":{command.name}" + (f" [{command.argument}]" if command.argument else "")
            lines.append(f"  {name:<20}{command.about}")
        return "\n".join(lines)

    def action_leave(self) -> None:
        self.close(None)


def _by_id() -> dict[str, list[Binding]]:
    found: dict[str, list[Binding]] = {}
    for binding in Binding.make_bindings(BINDINGS):
        found.setdefault(binding.id or binding.action, []).append(binding)
    return found
