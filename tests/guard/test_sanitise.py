"""Nothing that acts on a terminal, and nothing that hides, gets through."""

from __future__ import annotations

import copy
import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.guard.sanitise import SafeText, safe, safe_line

CASES = [
    ("plain text, tab\tand\nnewline", "plain text, tab\tand\nnewline"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x9b31mred", "red"),
    ("\x1b[?1049h\x1b[2J\x1b[Hgone", "gone"),
    ("\x1b]0;title\x07text", "text"),
    ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x9d0;title\x9ctext", "text"),
    ('\x1bP$q"p\x1b\\after', "after"),
    ("\x1b_apc\x1b\\a\x1b^pm\x1b\\b\x1bXsos\x1b\\c", "abc"),
    ("\x1b]0;never closed\nnext line", "0;never closed\nnext line"),
    ("\x1bcreset", "reset"),
    ("\x1b(0lines", "lines"),
    ("who\x05are you", "whoare you"),
    ("\x1b[6n\x1b[c\x1bZ", ""),
    ("\x1b\x1b[A[31m", "31m"),
    ("bell\x07 back\x08space del\x7f nul\x00", "bell backspace del nul"),
    ("10%\r20%\r\n30%", "10%\n20%\n30%"),
    ("abc\u202efdp.exe", "abc<U+202E>fdp.exe"),
    ("zero\u200bwidth\ufeff", "zero<U+200B>width<U+FEFF>"),
    ("\u2066iso\u2069", "<U+2066>iso<U+2069>"),
    ("tag\U000e0041", "tag<U+E0041>"),
    ("line\u2028sep", "line<U+2028>sep"),
    ("lone\ud800surrogate", "lone<U+D800>surrogate"),
    ("blank\u3164letter", "blank<U+3164>letter"),
    ("e\u0301 stays", "e\u0301 stays"),
    ("z" + "\u0301" * 50 + "algo", "z" + "\u0301" * 4 + "algo"),
    ("emoji ⚠️ and 日本語", "emoji ⚠️ and 日本語"),
    ("[@click=app.quit]x[/]", "[@click=app.quit]x[/]"),
]


@pytest.mark.parametrize(("text", "wanted"), CASES, ids=range(len(CASES)))
def test_cases(text: str, wanted: str) -> None:
    assert safe(text) == wanted
    assert isinstance(safe(text), SafeText)


ACTING = st.sampled_from(
    [
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x1bP",
        "\x9b",
        "\x9d",
        "\x90",
        "\x07",
        "\x9c",
        "\x1b\\",
        "\x05",
        "\r",
        "\u202e",
        "m",
        "0",
        ";",
        "c",
        "\n",
    ]
)


@given(st.one_of(st.text(), st.lists(ACTING).map("".join), st.lists(st.one_of(ACTING, st.characters())).map("".join)))
@settings(max_examples=1500, deadline=None)
def test_nothing_acts_and_nothing_hides(text: str) -> None:
    cleaned = safe(text)
    for character in cleaned:
        assert character in "\t\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}, repr(
            character
        )
    assert safe(str(cleaned)) == cleaned, "cleaning twice changes nothing"
    cleaned.encode("utf-8")


@given(st.text(max_size=300), st.integers(1, 40))
def test_length_is_capped_and_said(text: str, limit: int) -> None:
    cleaned = safe(text, limit)
    if len(text) > limit:
        assert cleaned.endswith(f"({len(text) - limit} more characters)")
        assert len(cleaned) <= limit * 9 + 40


def test_one_line() -> None:
    assert safe_line("a\nb\t c\x1b[0m  ") == "a b c"
    assert "\n" not in safe_line("x\n" * 1000)
    assert isinstance(safe_line("x"), SafeText)


def test_only_safe_makes_safe_text() -> None:
    with pytest.raises(TypeError):
        SafeText("\x1b[2J")
    with pytest.raises(TypeError):
        SafeText("x", object())
    assert not isinstance(safe("abc")[1:], SafeText)
    assert not isinstance(safe("abc") + "\x1b[2J", SafeText)
    assert pickle.loads(pickle.dumps(safe("abc"))) == "abc"
    assert isinstance(copy.deepcopy(safe("abc")), SafeText)
