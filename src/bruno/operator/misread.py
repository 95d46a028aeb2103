"""What is said to words that nobody could read: near sentences, never one that shares no word with what was typed.

Somebody who typed `yes` a moment too late must not be shown "destroy it" because the letters look alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from bruno.operator.views import Answer

_ANSWERS = frozenset({"yes", "y", "no", "n", "ok", "okay", "sure", "do it", "go", "go ahead", "confirm"})
_COMMANDS = frozenset({"abliterate", "audit", "bruno", "config", "explain", "export", "fit", "guard", "reproduce"})
"""Commands of `bruno` that have no sentence."""
_SMALL_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "can", "do", "does", "for", "how", "i", "in", "is", "it", "me", "my", "of", "on"),
        *("please", "that", "the", "this", "to", "what", "when", "which", "with", "you"),
    )
)
_FIRST = ("start demo on an H200", "how is it going", "help")
_MOST = 3
_ALIKE, _SAME_WORD = 45, 75
"""Percent: of a whole sentence, words in any order; of one word, a slip of the finger apart."""


def misread(words: str, sentences: Sequence[str], *, asked: bool = False, suggestions: Sequence[str] = ()) -> Answer:
    """The answer to words without a reading.

    Args:
        words: what was typed. sentences: what can be said.
        asked: the assistant was asked too. suggestions: what it proposes; used before the nearest sentences.
    """
    said = words.strip(" .!?").casefold()
    if said in _ANSWERS:
        return Answer(
            text="no question is open: nothing was done. What needs your yes shows its plan first, and asks.",
            failed=True,
        )
    command = said.split(" ", 1)[0]
    if command in _COMMANDS:
        name = "" if command == "bruno" else f" {command}"
        return Answer(
            text=f"not understood as a sentence. In a terminal it is a command: bruno{name} --help", failed=True
        )
    who = (
        "neither the grammar nor the assistant could read that" if asked else "the grammar does not know that sentence"
    )
    return Answer(
        text=f"not understood: {who}. What can be said, for example:",
        suggestions=tuple(suggestions or nearest(words, sentences) or _FIRST),
        failed=True,
    )


def nearest(words: str, sentences: Sequence[str]) -> list[str]:
    """Sentences like these words that also share a word with them, best first."""
    from rapidfuzz import fuzz, process

    mine = _words(words)
    close = process.extract(words, sentences, scorer=fuzz.token_sort_ratio, limit=4 * _MOST, score_cutoff=_ALIKE)
    shared = [
        sentence
        for sentence, _, _ in close
        if any(fuzz.ratio(one, other) >= _SAME_WORD for one in mine for other in _words(sentence))
    ]
    return shared[:_MOST]


def _words(sentence: str) -> set[str]:
    return {word.strip(".,;:!?").casefold() for word in sentence.split()} - _SMALL_WORDS
