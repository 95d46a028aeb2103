from __future__ import annotations

from pathlib import Path

import pytest

from bruno.guard.rules import load_rules, shipped, shipped_folder

PHRASE = """
[[phrase]]
name = "sunset"
words = ["sunset"]
question = "Which?"
match = ["sunset it"]
no_match = ["is the sunset near?"]
[[phrase.readings]]
text = "Wait"
consequence = "Nothing."
intent = "watch_run"
[[phrase.readings]]
text = "Stop"
consequence = "Stops."
intent = "stop_instance"
"""


def with_file(folder: Path, name: str, text: str):
    (folder / name).write_text(text, "utf-8")
    return load_rules([folder])


def test_the_shipped_files_hold() -> None:
    rules = shipped()
    assert rules.problems == () and not rules.broken
    floors = {floor.name: floor for floor in rules.disk.floors}
    assert floors["32B"].minimum_gb == 200
    assert (floors["70B"].minimum_gb, floors["70B"].recommended_gb) == (300, 400)
    assert shipped_folder().name == "guardrails"


def test_a_folder_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    assert load_rules([tmp_path / "none"]) == shipped()


def floor(rules, name: str) -> float:
    return next(one.minimum_gb for one in rules.disk.floors if one.name == name)


TIGHTEN = [
    ("budgets.toml", "max_dph = 3", lambda rules: rules.budgets.max_dph == 3),
    (
        "budgets.toml",
        "max_live = 1\nrunway_hours = 12",
        lambda rules: rules.budgets.max_live == 1 and rules.budgets.runway_hours == 12,
    ),
    ("disk.toml", "extra_gb = 50", lambda rules: rules.disk.extra_gb == 50),
    ("disk.toml", "[floors.32B]\nminimum_gb = 250", lambda rules: floor(rules, "32B") == 250),
    ("disk.toml", "[floors.405B]\nfrom_gb = 500\nminimum_gb = 2000", lambda rules: floor(rules, "405B") == 2000),
    ("phrases.toml", PHRASE, lambda rules: rules.phrases.phrase[-1].name == "sunset"),
]


@pytest.mark.parametrize(("name", "text", "holds"), TIGHTEN)
def test_a_file_may_tighten(tmp_path: Path, name: str, text: str, holds) -> None:
    rules = with_file(tmp_path, name, text)
    assert rules.problems == () and not rules.broken
    assert holds(rules)


LOOSEN = [
    ("budgets.toml", "max_dph = 4000"),
    ("budgets.toml", "runway_hours = 0.1"),
    ("budgets.toml", "max_live = 90"),
    ("disk.toml", "[floors.32B]\nminimum_gb = 10"),
]


@pytest.mark.parametrize(("name", "text"), LOOSEN)
def test_a_file_cannot_loosen(tmp_path: Path, name: str, text: str) -> None:
    rules = with_file(tmp_path, name, text)
    assert not rules.broken
    assert len(rules.problems) == 1 and name in rules.problems[0] and "loosen" in rules.problems[0]
    assert (rules.budgets, rules.disk, rules.phrases) == (shipped().budgets, shipped().disk, shipped().phrases)


BROKEN = [
    ("budgets.toml", "max_dph = "),
    ("budgets.toml", 'max_dph = "a lot"'),
    ("budgets.toml", "max_dph = nan"),
    ("budgets.toml", "max_dph = true"),
    ("budgets.toml", "maximum = 3"),
    ("budgets.toml", "max_dph = -1"),
    ("disk.toml", "floors = 3"),
    ("disk.toml", "copys = 3"),
    ("disk.toml", "[floors.new]\nminimum_gb = 3\nfrom_gb = -1"),
    ("phrases.toml", PHRASE.replace('match = ["sunset it"]', 'match = ["sunrise"]')),
    ("phrases.toml", PHRASE.replace("is the sunset near?", "please sunset it")),
    ("phrases.toml", PHRASE.replace('question = "Which?"', 'unless = ["("]\nquestion = "Which?"')),
    ("phrases.toml", "unless = ['.*']"),
]


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_a_broken_file_is_named_and_nothing_may_cost(tmp_path: Path, name: str, text: str) -> None:
    rules = with_file(tmp_path, name, text)
    assert rules.broken and len(rules.problems) == 1 and name in rules.problems[0]
    assert rules.budgets.max_dph == 0 and rules.budgets.max_live == 0


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "budgets.toml").write_bytes("max_dph = 3".encode("utf-16"))
    assert load_rules([tmp_path]).broken
