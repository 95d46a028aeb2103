"""Files of a user or project tighten; a wrong file is named, and nothing passes in silence because of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bruno.guard.command import check
from bruno.guard.command_rules import load_command_rules
from bruno.guard.rules import load_rules, shipped_folder
from bruno.guard.shapes import Level
from bruno.settings.load import resolve
from bruno.settings.paths import Paths, own_guardrails

RULE = """
[ls]
[[ls.rule]]
name = "no-secrets-folder"
verdict = "refuse"
reason = "looks into the secrets folder"
arg = ['^/secrets']
match = ["ls /secrets"]
no_match = ["ls /workspace"]
"""


def with_file(folder: Path, text: str):
    (folder / "commands").mkdir()
    (folder / "commands" / "own.toml").write_text(text, "utf-8")
    return load_command_rules([folder])


def test_an_own_rule_tightens(tmp_path: Path) -> None:
    rules = with_file(tmp_path, RULE)
    assert rules.problems == []
    assert check("ls /secrets", rules).verdict == "refuse"
    assert check("ls /workspace", rules).verdict == "allow"
    assert check("ls /secrets").verdict == "allow"


def test_an_own_rule_for_a_new_program(tmp_path: Path) -> None:
    rules = with_file(tmp_path, '[deploy]\nfloor = "refuse"\nsays = "deploys {args}"\n')
    assert check("deploy prod", rules).verdict == "refuse"
    assert "deploys prod" in check("deploy prod", rules).reasons


LOOSENING = [
    '[rm]\n[[rm.allow]]\nmatch = ["rm x"]\n',
    "[rm]\n[[rm.wrapper]]\n",
    '[rm]\nalso = ["ls"]\n',
    '[git]\nglobals = ["-x"]\n',
    RULE.replace("arg =", 'without = ["-l"]\narg ='),
]
WRONG = [
    "[ls",
    '[ls]\n[[ls.rule]]\nname = "x"\n',
    RULE.replace('"refuse"', '"perhaps"'),
    RULE.replace("^/secrets", "("),
    "[ls]\nunknown = 3\n",
    "ls = 3",
]


@pytest.mark.parametrize("text", LOOSENING + WRONG, ids=range(len(LOOSENING + WRONG)))
def test_what_loosens_or_is_wrong_is_named_and_nothing_is_allowed(tmp_path: Path, text: str) -> None:
    rules = with_file(tmp_path, text)
    assert rules.broken and "own.toml" in rules.problems[0]
    assert check("ls -la", rules).level is Level.typed_yes
    assert check("rm -rf /", rules).level is Level.refuse
    assert "cannot be used" in " ".join(check("ls", rules).reasons)


def test_an_example_that_does_not_hold_is_found_when_the_program_is_met(tmp_path: Path) -> None:
    rules = with_file(tmp_path, RULE.replace('match = ["ls /secrets"]', 'match = ["ls /other"]'))
    assert check("ls -la", rules).level is Level.typed_yes
    assert any("no-secrets-folder" in problem for problem in rules.problems)
    assert check("nvidia-smi", rules).level is Level.allow


def test_places_can_be_added_but_sinks_cannot(tmp_path: Path) -> None:
    (tmp_path / "places.toml").write_text("roots = ['/workspace']\nsinks = ['/etc/passwd']\n", "utf-8")
    rules = load_command_rules([tmp_path])
    assert check("rm -rf /workspace", rules).verdict == "refuse"
    assert check("ls > /etc/passwd", rules).level > Level.allow


def test_a_wrong_file_is_told_once_by_the_examples_run(tmp_path: Path) -> None:
    rules = with_file(tmp_path, "[ls")
    assert rules.check_all() == [] and len(rules.problems) == 1
    assert check("ls", rules).level is Level.typed_yes


def test_the_users_and_the_projects_files_are_both_in_force(tmp_path: Path) -> None:
    """A project can neither take the user's rules away nor point past them; bruno's own files in a checkout are no user's."""
    project, user, named = tmp_path / "project", tmp_path / "user", tmp_path / "named"
    for folder, word in ((project, "project"), (user, "user"), (named, "named")):
        (folder / "guardrails" / "commands").mkdir(parents=True)
        text = RULE.replace("/secrets", f"/{word}").replace("no-secrets-folder", word)
        (folder / "guardrails" / "commands" / "own.toml").write_text(text, "utf-8")
    (project / "config.toml").write_text(f'guardrails = "{named / "guardrails"}"\n')
    settings = resolve({}, environ={}, cwd=project)
    folders = own_guardrails(settings, Paths(home=tmp_path / "state", config=user / "config.toml"))
    assert folders == [each / "guardrails" for each in (user, project, named)]
    rules = load_command_rules(folders)
    assert [check(f"ls /{word}", rules).verdict for word in ("project", "user", "named", "x")] == [
        *["refuse"] * 3,
        "allow",
    ]
    assert load_command_rules([shipped_folder()]).problems == []
    assert load_rules([shipped_folder()]).problems == ()
