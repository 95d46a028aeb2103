"""The command line on a real terminal that answers: hostile text reaches it as plain text, and nothing is typed back."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pexpect

from tests.guard.terminals import AnsweringTerminal, answers, corpus

ROOT = Path(__file__).parents[2]


def test_no_escape_byte_reaches_the_terminal_and_nothing_is_typed_back(tmp_path: Path) -> None:
    texts = corpus(150)
    assert sum(bool(answers(text.encode())) for text in texts) > 50, "the corpus asks the terminal nothing"
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    argv = ["-m", "tests.cli.hostile_output", str(file)]
    child = pexpect.spawn(sys.executable, argv, cwd=str(ROOT), timeout=90, dimensions=(40, 120), echo=False)
    terminal = AnsweringTerminal(child.child_fd)
    seen = terminal.until(lambda out: b"THE END" in out, 90)
    child.close(force=True)
    assert terminal.replied == b""
    shown = seen.decode("utf-8")
    left = {character for character in shown if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert left <= set("\r\n\t"), left
    assert all(line.endswith("\r\n") for line in shown.splitlines(keepends=True)[:-1]), "a lone carriage return"
    assert "Traceback" not in shown


def test_the_terminal_of_these_tests_does_answer(tmp_path: Path) -> None:
    """The proof above can fail: the same texts, printed as they are, are answered."""
    code = (
        "import sys; sys.stdout.write('\\x05\\x1b[6n\\x1b[c'); sys.stdout.flush(); "
        "print(sys.stdin.readline().strip() == 'yes')"
    )
    child = pexpect.spawn(sys.executable, ["-c", code], timeout=30, echo=False)
    terminal = AnsweringTerminal(child.child_fd)
    assert b"True" in terminal.until(lambda out: b"True" in out or b"False" in out, 30)
    child.close(force=True)
