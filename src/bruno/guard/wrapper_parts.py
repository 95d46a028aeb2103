"""What wrappers have in common: the readings they offer, and where a wrapper's own flags end. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from bruno.guard.shapes import Wrapper
from bruno.guard.words import Word


@dataclass(slots=True)
class Inner:
    """What runs inside: `words` as they are, or `script` read by a shell. `where` says on what or as whom."""

    words: list[Word] | None = None
    script: str | None = None
    where: str = ""
    sure: bool = True


@dataclass(slots=True)
class Unwrapped:
    """The readings of a wrapper's arguments, and what the wrapper itself calls for."""

    inners: list[Inner] = field(default_factory=list)
    own: str = "allow"
    reason: str = ""
    rule: str = ""


def own_part(wrapper: Wrapper, words: list[Word]) -> int | None:
    """Index of the first word that is not the wrapper's own flag, or None when a flag is not known."""
    at = 0
    while at < len(words):
        text = words[at].text
        if text == "--":
            return at + 1
        if not text.startswith("-") or len(text) < 2:
            return None if words[at].may_be_flag and words[at].splits else at
        name = text.split("=", 1)[0]
        if text in wrapper.values:
            at += 2
        elif text in wrapper.flags or name in wrapper.values or (name.startswith("--") and name + "=" in wrapper.flags):
            at += 1
        elif not text.startswith("--") and _cluster(wrapper, text):
            at += 2 if text[-1] and "-" + text[-1] in wrapper.values and "-" + text[1] not in wrapper.values else 1
        else:
            return None
    return at


def _cluster(wrapper: Wrapper, text: str) -> bool:
    """`-u root` written `-uroot`, or flags run together (`-nE`)."""
    for letter in text[1:]:
        if "-" + letter in wrapper.values:
            return True
        if "-" + letter not in wrapper.flags:
            return "-N" in wrapper.flags and text[1:].isdigit()
    return True


def anywhere(words: list[Word], where: str = "") -> Unwrapped:
    """Every place where the inner command could begin, when its start cannot be found."""
    inners = [
        Inner(words=words[at:], where=where, sure=False)
        for at in range(min(len(words), 12))
        if not words[at].text.startswith("-")
    ]
    return Unwrapped(
        inners, own="typed_yes", reason="where its inner command begins cannot be told", rule="wrapper-unclear"
    )
