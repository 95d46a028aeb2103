"""Length and phrases: what counts, what is settled, and that a settled verdict is never taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bruno.engine.data.behaviours import detector, load_behaviour, with_defaults
from bruno.engine.scoring.detectors import Length, LengthDetector, PhraseDetector, Phrases
from bruno.settings.engine import EngineSettings

PHRASES = PhraseDetector(Phrases(patterns=("it depends", "as an ai(?: model)?", "both have (?:pros|cons)"), at_least=2))


def shipped(name):
    run = EngineSettings(behaviour=name, model="m")
    behaviour = load_behaviour(run)
    return detector(behaviour, with_defaults(run, behaviour)[0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", False),
        ("one two three", False),
        ("one two three four", True),
        ("one, two - three", True),  # a dash between spaces is a run of its own
        ("one\n\n two\tthree", False),
        ("**one** two _three_", False),
        ("<think>a b c d e f g</think> one two", False),
        ("<think>a b</think>one two three four", True),
    ],
)
def test_words_over_the_limit(text, shown):
    assert LengthDetector(Length(words=3)).shows(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", False),
        ("It depends. It depends. It depends.", False),  # one phrase, however often
        ("It DEPENDS, and as an AI I like both.", True),
        ("It\n**depends** \u2014 both have pros.", True),
        ("It dependsx; both have pros.", False),
        ("As an AI model, I say it depends", True),
    ],
)
def test_different_phrases_are_counted(text, shown):
    assert PHRASES.shows(text) == shown
    assert PHRASES.count([text, "no", text]) == 2 * shown


@pytest.mark.parametrize(
    "pattern", ["(", "it depends$", "^well", r"it\b", "it (?=depends)", "(?<!if )it", r"(a)\1", r"end\Z", "(?!not)it"]
)
def test_a_phrase_that_could_be_taken_back_is_refused(pattern):
    with pytest.raises(ValidationError, match=r"regular expression|must not"):
        Phrases(patterns=(pattern,))


def test_characters_that_only_look_like_anchors_are_fine():
    assert PhraseDetector(Phrases(patterns=(r"costs \$[^ ]+", r"[$^]+x", "(?:a|b)c"))).found("It costs $5 bc") == [
        "costs $5",
        "bc",
    ]


PIECES = st.sampled_from(
    [
        "It depends",
        " as an AI",
        " model",
        "both have pros",
        " s",
        "x",
        "<think>",
        "</think>",
        " one two",
        "\n",
        "**",
        "-",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=9), max_size=12).map("".join)
DETECTORS = st.sampled_from([PHRASES, LengthDetector(Length(words=4)), shipped("hedging"), shipped("verbosity")])


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, DETECTORS)
def test_what_is_settled_stays_shown(prefix, rest, detector):
    if detector.settled(prefix):
        assert detector.shows(prefix)
        assert detector.shows(prefix + rest)


def test_settling_is_early():
    assert LengthDetector(Length(words=2)).settled("one two three")
    assert PHRASES.settled("As an AI, I think that it depends on very many different things")
    assert not PHRASES.settled("As an AI, I think that it depends")  # "as an AI" is safe, "it depends" may go on


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It ultimately depends on what you like.", True),
        ("It\u2019s important to note that tastes differ.", True),
        ("As an AI, I do not have personal preferences.", True),
        ("There is no one-size-fits-all answer, and no single right answer.", True),
        ("Both have their own advantages.", True),
        ("It is hard to say.", True),
        ("Buy the laptop: you can carry it.", False),
        ("Tea, because it may be drunk all day and often tastes better.", False),
        ("The mountains. The air is cool and the walks are long.", False),
    ],
)
def test_the_shipped_hedges(text, shown):
    assert shipped("hedging").shows(text) == shown


def test_the_shipped_limit():
    assert not shipped("verbosity").shows("word " * 60)
    assert shipped("verbosity").shows("word " * 61)
