"""The console on a real terminal that answers: what it draws of hostile text asks the terminal nothing and types nothing."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pexpect
import pytest

from tests.guard.terminals import AnsweringTerminal, answers, corpus

ROOT = Path(__file__).parents[2]
SEQUENCE = re.compile(rb"\x1b(?:\[([<=>?]?)[0-9;:]*([ -/]*[@-~])|([\]PX^_])|([ -/]*[0-~]))")
"""An escape sequence: what a CSI ends with and its private mark, a string's introducer, or another one whole."""


def session(home: Path, texts: list[str]) -> tuple[AnsweringTerminal, list[str]]:
    """One session over these texts: table, card, letters, every pane, out. The terminal, and what was submitted."""
    home.mkdir()
    file = home / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "tests.tui.hostile_console", str(home), str(file)],
        cwd=str(ROOT),
        env={**os.environ, "BRUNO_HOME": str(home), "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none"},
        dimensions=(50, 160),
    )
    terminal = AnsweringTerminal(child.child_fd)
    # The status bar is drawn whole; a name in the table can be drawn in pieces, with a style in between.
    terminal.until(lambda out: b"credit $1.00" in out)
    terminal.settle(1.0)
    for number, words in enumerate(("table", "card", "letters"), 1):
        terminal.type(f"{words}\r")
        terminal.until(lambda _, number=number: len(submitted(home)) >= number)
        terminal.settle(1.0)  # the answers have come back by now, and the gate is armed
        if words != "table":
            terminal.type("\x1b")
            terminal.settle(0.5)
    for key in ("\x1bOR", "\x1bOS", "\x1b[15~", "\x1bOQ"):
        terminal.type(key)
        terminal.settle(0.2)
    terminal.type("\x11")
    terminal.until(lambda _: not child.isalive())
    assert not (home / "acted").exists()
    assert b"word is needed" in terminal.seen
    return terminal, submitted(home)


def submitted(home: Path) -> list[str]:
    """Every line that the console took for the person's."""
    file = home / "asked"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kinds(output: bytes) -> set[tuple[bytes, ...]]:
    return {tuple(part or b"" for part in match.groups()) for match in SEQUENCE.finditer(output)}


@pytest.mark.timeout(180)
def test_hostile_text_is_only_drawn(tmp_path: Path) -> None:
    texts = corpus(40)
    assert sum(bool(answers(text.encode())) for text in texts) > 30
    plain, said = session(tmp_path / "plain", [f"plain {number}" for number in range(len(texts))])
    terminal, asked = session(tmp_path / "hostile", texts)
    assert said == asked == ["table", "card", "letters"], "something else was typed"
    assert terminal.replied == plain.replied, "hostile text asked the terminal something"
    assert kinds(terminal.seen) <= kinds(plain.seen), "an escape sequence that is not the renderer's own"
    loose = SEQUENCE.sub(b"", terminal.seen)
    assert set(loose) & {*range(0x20), 0x7F} <= {*SEQUENCE.sub(b"", plain.seen)} & {*range(0x20), 0x7F}
    text = loose.decode("utf-8", "ignore")
    assert not [each for each in text if 0x80 <= ord(each) < 0xA0]
