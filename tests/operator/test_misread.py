"""What is suggested for words without a reading, and what never is."""

from __future__ import annotations

import pytest

from bruno.assistant.grammar import Grammar
from bruno.operator.misread import misread, nearest

SENTENCES = [words for words, _, _ in Grammar({}).examples()]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("strat demo on an H200", "start qwen32b on an H200"),
        ("start qwen 32b on an H200", "start qwen32b on an H200"),
        ("how much is it", "how much is an H200"),
        ("isntances", "instances"),
        ("cots", "costs"),
        ("try the demo", "start demo"),
    ],
)
def test_a_slip_of_the_finger_finds_its_sentence(words: str, near: str) -> None:
    assert near in nearest(words, SENTENCES)


@pytest.mark.parametrize(
    "words", ["quit", "hello", "does it fit", "kll it", "publish it", "blah blah", "\u0627\u0628\u062f\u0623"]
)
def test_what_shares_no_word_is_not_suggested(words: str) -> None:
    assert nearest(words, SENTENCES) == []
    assert misread(words, SENTENCES).suggestions[0] == "start demo on an H200"


@pytest.mark.parametrize("words", ["yes", "Y", "do it!", "ok", "no"])
def test_an_answer_without_a_question_is_told_so(words: str) -> None:
    answer = misread(words, SENTENCES)
    assert "no question is open" in answer.text
    assert answer.failed
    assert not answer.suggestions


@pytest.mark.parametrize(
    ("words", "said"), [("fit qwen32b", "bruno fit --help"), ("bruno runs please", "bruno --help")]
)
def test_a_command_is_sent_to_the_terminal(words: str, said: str) -> None:
    assert misread(words, SENTENCES).text.endswith(said)
