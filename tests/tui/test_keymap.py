"""The user's own keys, and what is said of a file that is wrong."""

from __future__ import annotations

import pytest
from textual.binding import Binding

from bruno.tui.help import HelpScreen
from bruno.tui.keymap import BINDINGS, read_keymap
from tests.tui.driving import opened, talk, until


@pytest.mark.parametrize(
    ("text", "keys", "words"),
    [
        ("", {}, ""),
        ('[keys]\nquit = "x"\n', {"quit": "x"}, ""),
        ('[keys]\nquit = "x"\nnope = "y"\n', {"quit": "x"}, "no such key name, or no key given: nope"),
        ("[keys]\nquit = 3\n", {}, "quit"),
        ("[keys\n", {}, "cannot be read, the usual keys are in force"),
    ],
)
def test_read_keymap(tmp_path, text: str, keys: dict[str, str], words: str) -> None:
    (tmp_path / "keymap.toml").write_text(text)
    found, problem = read_keymap(tmp_path / "config.toml")
    assert found == keys
    assert words in problem


def test_no_file_is_fine(tmp_path) -> None:
    assert read_keymap(tmp_path / "config.toml") == ({}, "")


def test_a_named_file_that_is_not_there_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BRUNO_KEYMAP", str(tmp_path / "gone.toml"))
    assert "no keymap file" in read_keymap(tmp_path / "config.toml")[1]


def test_every_key_can_be_moved_and_none_has_priority() -> None:
    bindings = list(Binding.make_bindings(BINDINGS))
    assert all(binding.id for binding in bindings)
    assert not any(binding.priority for binding in bindings)


async def test_a_moved_key_works_and_help_shows_it(make_app, tmp_path) -> None:
    (tmp_path / "keymap.toml").write_text('[keys]\nhelp = "f9"\nnope = "x"\n')
    async with make_app().run_test() as pilot:
        app = await opened(pilot)
        assert "no such key name" in talk(app)
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help opens")
        assert "f9" in app.screen._text()
