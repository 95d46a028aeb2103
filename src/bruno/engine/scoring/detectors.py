"""Tell whether an answer shows a behaviour: the interface that every detector has, and two beside refusals.

-   **length** (verbosity): the answer has more words than a stated limit.
-   **phrases** (hedging): at least so many different phrases of a list occur in it.

Pure text in, booleans out; imports no torch. What is `settled` stays shown whatever follows, because words and phrases
only ever come to an answer: property tests hold it, and it lets generation stop a row early. An empty answer shows
neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bruno.engine.scoring.refusals import SLACK, compile_markers, normalise, thought_is_open


class Detector(Protocol):
    """What the engine needs to know of a behaviour's answers."""

    def shows(self, text: str) -> bool:
        """Whether the whole answer shows the behaviour."""
        ...

    def settled(self, text: str) -> bool:
        """Whether `text`, the beginning of an answer, shows the behaviour whatever follows."""
        ...

    def count(self, texts: Iterable[str]) -> int:
        """How many of the answers show it: the raw count that is logged."""
        ...


class Length(BaseModel):
    """`[length]` of a behaviour file: an answer longer than this shows the behaviour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: int = Field(ge=1)
    """Words (runs of anything but white space) that an answer may have."""


class Phrases(BaseModel):
    """`[phrases]` of a behaviour file: an answer with enough of these shows the behaviour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[str, ...] = Field(min_length=1)
    """Regular expressions over normalised text, between word boundaries. Without look-around, back references and
    anchors: those could take a verdict back when more text follows."""
    at_least: int = Field(default=1, ge=1)
    """How many different ones must occur."""

    @field_validator("patterns")
    @classmethod
    def _monotone(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
            plain = re.sub(r"\\[\\.*+?()\[\]{}|^$]|\[[^\]]*\]", "", pattern)  # escaped characters, character sets
            if re.search(r"\(\?(?!:)|[$^]|\\[AZzbB1-9]", plain):
                raise ValueError(f"{pattern!r} looks around, refers back or has an anchor, which phrases must not")
        return patterns


class LengthDetector:
    """Answers with more words than `limit.words`. A leading thought block does not count."""

    def __init__(self, limit: Length) -> None:
        self.limit = limit.words

    def shows(self, text: str) -> bool:
        """Whether the answer is longer than the limit."""
        return len(normalise(text).split()) > self.limit

    def settled(self, text: str) -> bool:
        """True as soon as the limit is passed: an answer never gets shorter."""
        return not thought_is_open(text) and self.shows(text)

    def count(self, texts: Iterable[str]) -> int:
        """How many of the answers are longer than the limit."""
        return sum(map(self.shows, texts))


class PhraseDetector:
    """Answers in which at least `phrases.at_least` different phrases occur, once or often."""

    def __init__(self, phrases: Phrases) -> None:
        self.at_least = phrases.at_least
        self._patterns = [compile_markers((pattern,)) for pattern in phrases.patterns]

    def found(self, text: str) -> list[str]:
        """The words that matched, the first of each phrase."""
        return [match.group() for match in self._matches(normalise(text))]

    def shows(self, text: str) -> bool:
        """Whether enough phrases occur."""
        return len(self._matches(normalise(text))) >= self.at_least

    def settled(self, text: str) -> bool:
        """True when enough phrases occur far enough from the text's end that nothing can be added to their words."""
        if thought_is_open(text):
            return False
        normal = normalise(text)
        return sum(match.end() + SLACK <= len(normal) for match in self._matches(normal)) >= self.at_least

    def count(self, texts: Iterable[str]) -> int:
        """How many of the answers have enough phrases."""
        return sum(map(self.shows, texts))

    def _matches(self, normal: str) -> list[re.Match[str]]:
        return [match for match in (pattern.search(normal) for pattern in self._patterns) if match]
