from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.errors import InputError
from bruno.guard.phrases import ambiguous, check_letter
from bruno.guard.rules import Budgets, PhraseFile, Rules, shipped
from tests.guard.corpus import lines

KIND = {
    "watch_run",
    "stop_instance",
    "destroy_instance",
    "stop_everything",
    "show_instances",
    "show_progress",
    "resume_run",
}


def test_finish_is_let_it_run_or_stop_it_now() -> None:
    asked = ambiguous("finish the job")
    assert asked is not None
    assert [(option.letter, option.intent.kind) for option in asked.options] == [
        ("A", "watch_run"),
        ("B", "stop_instance"),
    ]
    assert all(option.consequence for option in asked.options)


def test_a_named_target_is_kept() -> None:
    asked = ambiguous("please kill Bruno-Demo-12ab now")
    assert asked is not None
    assert {getattr(option.intent, "target", None) for option in asked.options} == {"Bruno-Demo-12ab"}
    assert {getattr(option.intent, "target", None) for option in ambiguous("kill it").options} == {None}
    assert ambiguous("finish in 5 minutes").options[1].intent.target is None


def test_letters() -> None:
    asked = ambiguous("end it")
    assert check_letter(asked, " b ").letter == "B"
    assert check_letter(asked, "B)").letter == "B"
    for answer in ("", "yes", "the second", "2", "AB", "D", "stop"):
        with pytest.raises(InputError):
            check_letter(asked, answer)


def test_every_reading_is_an_intent_with_its_consequence() -> None:
    for rule in shipped().phrases.phrase:
        for example in rule.match:
            asked = ambiguous(example)
            assert asked is not None, example
            assert {option.intent.kind for option in asked.options} <= KIND
            assert any(option.intent.kind not in ("stop_instance", "destroy_instance") for option in asked.options)


def test_without_a_phrase_file_vague_words_still_ask() -> None:
    empty = Rules(Budgets(), shipped().disk, PhraseFile(), ("broken",), broken=True)
    assert ambiguous("kill the job", empty) is not None
    assert ambiguous("show instances", empty) is None


@pytest.mark.parametrize(
    "disguise", ["ＫＩＬＬ it", "ki\u200bll it", "KILL   IT", "kill\tit", "  kill it", "please\u00a0kill it"]
)
def test_spelling_tricks_change_nothing(disguise: str) -> None:
    assert ambiguous(disguise) is not None


def test_no_vague_order_passes() -> None:
    phrases = lines("phrases_ask.txt")
    assert len(set(phrases)) >= 300
    assert [phrase for phrase in phrases if ambiguous(phrase) is None] == []


def test_clear_words_and_questions_are_not_held_up() -> None:
    assert [phrase for phrase in lines("phrases_clear.txt") if ambiguous(phrase) is not None] == []


def test_every_vague_order_has_a_reading_that_destroys_nothing() -> None:
    for phrase in lines("phrases_ask.txt"):
        asked = ambiguous(phrase)
        assert asked is not None
        assert asked.options[0].intent.kind in ("watch_run", "show_instances", "stop_everything", "resume_run"), phrase


@given(st.text(max_size=300))
def test_any_text_is_read_without_error(text: str) -> None:
    ambiguous(text)
