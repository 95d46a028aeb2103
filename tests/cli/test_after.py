"""`bruno export` and `bruno reproduce`: what is wrong is one line; what is right reaches the engine whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from bruno.cli import engine


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the engine's command line was given."""
    calls: list[tuple[str, ...]] = []

    def main(argv: list[str]) -> int:
        calls.append(tuple(argv))
        return 1

    monkeypatch.setattr("bruno.engine.command.main", main)
    return calls


def test_export_hands_every_trial_on(bruno, handed, tmp_path: Path) -> None:
    said = bruno("export", str(tmp_path), "--trial", "17", "--trial", "33", "--name", "mine", "--adapter")
    assert said.code == 1
    assert handed == [("export", str(tmp_path), "--trial", "17", "--trial", "33", "--name", "mine", "--adapter")]


def test_reproduce_reads_the_file_first(bruno, handed, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("format = 1\n")
    for file, words in (("none.toml", "cannot be read"), ("r.toml", "made: Field required")):
        said = bruno("reproduce", file)
        assert said.code == 2 and said.err.count("\n") == 1 and words in said.err
    assert handed == []


@pytest.mark.parametrize(
    ("arguments", "words"), [(("export", "x"), "no trial was named"), (("export", "x", "--trial", "a"), "--trial")]
)
def test_wrong_exports_are_one_line(bruno, handed, arguments: tuple[str, ...], words: str) -> None:
    said = bruno(*arguments)
    assert said.code == 2 and said.err.count("\n") == 1 and words in said.err and handed == []


def test_without_the_engine_one_line_says_what_to_install(bruno, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    said = bruno("export", "x", "--trial", "1")
    assert said.code == 2 and "bruno[engine]" in said.err
