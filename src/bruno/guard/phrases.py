"""Words with two meanings, caught before any intent is believed. Pure; the phrases are data (guardrails/phrases.toml).

"finish the job" may mean let it run to its end, or stop it now. Such a phrase becomes a question with lettered readings, each
with its consequence, and no default. Choosing a destructive one still leads to its own plan and its own `yes`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from bruno.errors import InputError
from bruno.guard.rules import PhraseRule, Rules, shipped
from bruno.intents import Clarification, Option

# A vague verb counts when it heads a clause: at the start, after punctuation, or after words that lead up to an order.
_HEAD = (
    r"(?:^|[.,;:!?]\s*|\b(?:and|then|please|now|just|also|so|ok|okay|yes|no|hey|hi|bruno|to|let's|lets|must|should|can|you|we|i|"
    r"gonna|wanna|finally|immediately|simply|but|or|better|quickly|go ahead|actually|maybe|can't you|i'd)\s+)"
)
_TARGET = re.compile(r"\b(?=[\w.-]*\d)(?:[a-z][\w.-]*|\d{4,}[\w.-]*)\b|(?<=instance )\d+|(?<=#)\d+")
_SPACES = re.compile(r"\s+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'", "\u201c": '"', "\u201d": '"'})
# What stays caught when no phrase file can be used.
_VAGUE = re.compile(r"\b(finish|complete|end|close|clean|reset|kill|terminate|cancel|abort|wrap|everything|all)\b")


@dataclass(frozen=True)
class Ambiguity:
    """A phrase that can mean several things. `clarification` is what a face asks."""

    rule: str
    words: str
    clarification: Clarification

    @property
    def question(self) -> str:
        return self.clarification.question

    @property
    def options(self) -> tuple[Option, ...]:
        return self.clarification.options


def ambiguous(text: str, rules: Rules | None = None) -> Ambiguity | None:
    """The question to ask before `text` may be believed to mean one thing, or None when no rule knows it as vague.

    Args:
        text: what the person wrote, any length; only its first 2,000 characters are read.
        rules: the rules in force (the shipped ones when None).
    """
    rules = rules or shipped()
    if not rules.phrases.phrase:
        return _without_rules(text)
    for rule in rules.phrases.phrase:
        if caught_by(rule, text, rules.phrases.unless):
            return Ambiguity(rule.name, text, _question(rule, text))
    return None


def caught_by(rule: PhraseRule, text: str, unless: tuple[str, ...] = ()) -> bool:
    """Whether this rule finds `text` vague. `unless` holds the exceptions that apply to every rule.

    Raises:
        re.error: one of the rule's expressions is not a regular expression (found when the file is loaded).
    """
    words = normalised(text)
    if not _pattern(rule.words).search(words):
        return False
    if rule.needs and not any(_compiled(pattern).search(words) for pattern in rule.needs):
        return False
    return not any(_compiled(pattern).search(words) for pattern in (*rule.unless, *unless))


def normalised(text: str) -> str:
    """Lower case, compatibility forms, plain quotes, single blanks, nothing invisible: how phrases are compared."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text[:2000])).translate(_QUOTES)
    return _SPACES.sub(" ", text.casefold()).strip()


@lru_cache(maxsize=256)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    spelled = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"{_HEAD}(?:{spelled})\b(?!-)")


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _question(rule: PhraseRule, text: str) -> Clarification:
    words = normalised(text)
    named = _TARGET.search(words)
    target = _as_written(text, named[0]) if named else None
    options = []
    for letter, reading in zip("ABCDEF", rule.readings, strict=False):
        intent: dict[str, str] = {"kind": reading.intent}
        if target and reading.intent in _TARGETED:
            intent["target"] = target
        said = {"letter": letter, "text": reading.text, "consequence": reading.consequence, "intent": intent}
        options.append(Option.model_validate(said))
    return Clarification(question=rule.question, options=tuple(options))


_TARGETED = frozenset({"stop_instance", "destroy_instance", "watch_run", "show_progress", "fetch_model", "resume_run"})


def _as_written(text: str, folded: str) -> str:
    """The target with the person's own capitals, where they can be found again."""
    at = text.casefold().find(folded)
    return text[at : at + len(folded)] if at >= 0 else folded


def _without_rules(text: str) -> Ambiguity | None:
    if not _VAGUE.search(normalised(text)):
        return None
    rule = PhraseRule.model_validate(
        {
            "name": "no-phrase-file",
            "words": ["end"],
            "question": "The file of ambiguous phrases cannot be used, so bruno asks: which do you mean?",
            "readings": [
                {"text": "Let it continue", "consequence": "Nothing changes.", "intent": "watch_run"},
                {"text": "Stop the instance", "consequence": "Kills every process on it.", "intent": "stop_instance"},
            ],
            "match": ["end"],
        }
    )
    return Ambiguity(rule.name, text, _question(rule, text))


def check_letter(ambiguity: Ambiguity, answer: str) -> Option:
    """The option that the answer names: one letter, nothing else.

    Raises:
        InputError: any other answer; there is no default.
    """
    letter = answer.strip().upper().rstrip(".)")
    for option in ambiguity.options:
        if option.letter == letter:
            return option
    letters = ", ".join(option.letter for option in ambiguity.options)
    raise InputError(f"{answer.strip()[:40]!r} is none of the options", fix=f"Answer with one letter: {letters}")
