"""Playbooks: the shipped one is sound; a wrong one is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bruno.errors import InputError
from bruno.runs.playbook import load_playbook, shipped
from bruno.runs.runner import _DO


def test_every_shipped_playbook_loads_and_every_step_can_be_done() -> None:
    names = [path.stem for path in shipped().glob("*.toml")]
    assert "abliterate" in names
    for name in names:
        book = load_playbook(name)
        assert book.name == name
        assert {step.do for step in book.steps} <= set(_DO)


def spoiled(old: str, new: str) -> str:
    text = (shipped() / "abliterate.toml").read_text(encoding="utf-8")
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('do = "rent"', 'do = "format_disk"', "steps.0"),
        ("minutes = 45", "minutes = -1", "minutes"),
        ("minutes = 45", 'command = "rm -rf /"', "command"),
        ('name = "abliterate"', 'name = "Abliterate!"', "name"),
        ('do = "launch"', 'do = "rent"', "lack launch"),
        ('do = "check_disk"', 'do = "identify"', "spare_gb|order"),
        ("[[steps]]", "[[steps", "no TOML"),
        ('do = "verify"', 'do = "follow"', "order"),
    ],
)
def test_a_wrong_playbook_names_what_is_wrong(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(spoiled(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        load_playbook(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="abliterate"):
        load_playbook("abliterat")
    with pytest.raises(InputError, match="no playbook"):
        load_playbook("../secrets/x.toml")
