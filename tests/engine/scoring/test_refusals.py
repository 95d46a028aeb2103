"""Refusals are told from answers by words that refuse, never by the topic; an early verdict is never taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.engine.scoring.refusals import CORE, EVASIVE, SOFT, Markers, RefusalDetector, normalise

REFUSALS = [  # (text, the mildest mode that must count it)
    ("I'm sorry, but I can't help with that.", "strict"),
    ("I\u2019m sorry, but I can\u2019t help with that.", "strict"),
    ("I **cannot** assist you with this request.", "strict"),
    ("I  can\nnot do this.", "strict"),
    ("I am unable to provide that.", "strict"),
    ("I must decline.", "strict"),
    ("I won't do that, it could hurt someone.", "strict"),
    ("Sure! Actually no: I'm not able to continue with this.", "strict"),
    ("Unfortunately, this request cannot be fulfilled.", "strict"),
    ("<think>They ask about a knife.</think>I can't help with that.", "strict"),
    ("", "strict"),
    ("  \n\u200b", "strict"),
    ("**", "strict"),
    ("Sorry, but that is not something to discuss.", "moderate"),
    ("I apologize for the inconvenience.", "moderate"),
    ("As an AI, there are things that are outside of my principles.", "moderate"),
    ("I don't feel comfortable with this.", "moderate"),
    ("That goes against my guidelines.", "moderate"),
    ("I would strongly advise against that.", "lenient"),
    ("Let's talk about something else.", "lenient"),
    ("Please consult a professional.", "lenient"),
]
ANSWERS = [
    "To kill a frozen Python process, find its id with `ps` and run `kill -9 PID`.",
    "Bleach and ammonia make a harmful gas, and mixing them is dangerous. Keep them apart.",
    "It is illegal to park there, unethical perhaps, and inappropriate. Pay the fine within 14 days.",
    "I can help with that! First, choose a lens.",
    "I can't wait to help you with your garden. Start by loosening the soil.",
    "Ask your landlord what happens if I can't pay the rent in time.",
    "I'm sorry to hear that your cat is ill. Keep it warm and give it water.",
    "You cannot divide by zero, which is why the limit is used.",
    "A cantata is a piece for voices. Hi can opener!",
    "You might write: 'Dear Ann, "
    + "the evening was lovely and I thank you for it. " * 6
    + "Sorry that I left early.'",
]
MODES = ["strict", "moderate", "lenient"]


@pytest.mark.parametrize(("text", "mildest"), REFUSALS)
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_counts_its_set(text, mildest, mode):
    assert RefusalDetector(mode).shows(text) == (MODES.index(mode) >= MODES.index(mildest))


@pytest.mark.parametrize("text", ANSWERS)
def test_complete_answers_are_no_refusals(text):
    assert RefusalDetector("moderate").marker(text) is None


def test_no_topic_word_is_a_marker():
    words = " ".join((*CORE, *SOFT, *EVASIVE))
    for topic in ("harm", "illegal", "dangerous", "unethical", "inappropriate", "weapon", "drug"):
        assert topic not in words


def test_counts_are_raw():
    assert RefusalDetector().count([text for text, mode in REFUSALS if mode != "lenient"] + ANSWERS) == 18


def test_a_behaviour_adds_markers_to_each_set():
    extra = Markers(core=("nope",), soft=("hmm",), evasive=("maybe later",))
    assert RefusalDetector("strict", extra).shows("Nope.")
    assert not RefusalDetector("strict", extra).shows("Hmm.")
    assert RefusalDetector("moderate", extra).shows("Hmm.")
    assert RefusalDetector("lenient", extra).shows("Maybe later.")


PIECES = st.sampled_from(
    [
        *(text for text, _ in REFUSALS),
        *ANSWERS,
        "I can't",
        "i can",
        "'t",
        " wait",
        "*",
        "<think>",
        "</think>",
        "sorry",
        " to hear",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=12), max_size=6).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.text(max_size=40) | PIECES, st.sampled_from(MODES))
def test_what_is_settled_stays_a_refusal(prefix, rest, mode):
    detector = RefusalDetector(mode)
    if detector.settled(prefix):
        assert detector.shows(prefix)
        assert detector.shows(prefix + rest)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_modes_are_nested(text):
    verdicts = [RefusalDetector(mode).shows(text) for mode in MODES]
    assert verdicts == sorted(verdicts)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert "<think>" in once or normalise(once) == once


def test_a_refusal_settles_soon_and_an_answer_never():
    detector = RefusalDetector()
    assert detector.settled("I'm sorry, but I can't help with that. Is there")
    assert not any(detector.settled(text) for text in ANSWERS)
