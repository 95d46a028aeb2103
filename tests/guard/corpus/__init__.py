"""Corpora of commands and phrases: one a line, `##` starts a heading, \\N stands for a newline."""

from __future__ import annotations

from pathlib import Path


def lines(name: str) -> list[str]:
    """The entries of a corpus, in order."""
    text = (Path(__file__).parent / name).read_text("utf-8")
    return [
        line.replace("\\N", "\n")
        for line in text.splitlines()
        if line.strip() and not line.startswith(("## ", "# Lines", "# What"))
    ]
