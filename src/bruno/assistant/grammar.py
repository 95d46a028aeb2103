"""The offline grammar: a sentence becomes an intent, or nothing. It never guesses a target and needs no network.

Sentences live in `grammar.toml` and are matched by hassil (Home Assistant's intent grammar). A word that stands in no
sentence is a name (a model, an instance, a label), a figure is a number: both are replaced by placeholders first, so a
sentence has one reading and a wildcard can never swallow "on an H200" as part of a model's name. Whether a name exists is
for the operator to say.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from bruno.assistant.shell_lines import instance_line, run_sentence
from bruno.intents import Intent, ReportTrouble, ResolveConcern, SetConstraint, intent_adapter

_LONGEST = 600
_LONGEST_REPORT = 2000
_PLACES = 6
_RULES = ("no_stop", "no_destroy", "no_new_instances", "gpu_only", "max_dph", "max_total")
_FIGURE = re.compile(r"\$?(\d{1,9}(?:\.\d{1,4})?)\$?")
_WITH_UNIT = re.compile(r"(\$?\d+(?:\.\d+)?)(\$?/h(?:our|r)?|gb|g|x|\$)", re.IGNORECASE)
_PER_HOUR = re.compile(r"\$?/h(?:our|r)?", re.IGNORECASE)
_WORD = re.compile(r"[a-z][a-z']*|\?")
_LITERAL = re.compile(r"\{[^}]*\}|<[^>]*>")
_SPOKEN = re.compile(
    r"\s*(resolved|concern|report|trouble)\b\s*(?:number\s+)?#?(\d{1,9})?\s*[:,]\s*(\S.*)", re.IGNORECASE | re.DOTALL
)
_FIGURES_IN_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 2
    )
}
_NUMBERS = frozenset({"disk_gb", "max_dph", "count", "instances", "gpus_in_all", "workers", "trials", "number"})


@dataclass(frozen=True)
class _Sentence:
    """A sentence with its names and figures taken out; `names[i]` stands where `zname<i>` is."""

    text: str
    names: tuple[str, ...]
    figures: tuple[str, ...]


def spoken(words: str) -> ResolveConcern | ReportTrouble | None:
    """`resolved: ...`, `resolved 2: ...` and `concern: ...`: what follows the colon is the person's own words, kept as they are.

    Read before anything else, since such words ("resolved: I killed it myself") must not be taken for an order.
    """
    found = _SPOKEN.fullmatch(words)
    if found is None or len(found[3]) > _LONGEST_REPORT:
        return None
    text = found[3].strip()
    if found[1].casefold() == "resolved":
        return ResolveConcern(words=text, number=int(found[2]) or None) if found[2] else ResolveConcern(words=text)
    return None if found[2] else ReportTrouble(words=text)


class Grammar:
    """The grammar for one set of GPU names.

    Args:
        gpus: short name -> the provider's names, as in the settings.
    """

    def __init__(self, gpus: Mapping[str, list[str]]) -> None:
        self._gpus = gpus

    def read(self, words: str) -> Intent | None:
        """The one intent these words say, or None: unknown words, two readings, or too long to be a request."""
        from hassil.recognize import recognize_all

        if not words.strip() or len(words) > _LONGEST:
            return None
        shell = instance_line(words) or run_sentence(words, self._gpu_words)
        if shell is not None:
            return shell
        sentence = self._take_names_out(words)
        if sentence is None:
            return None
        found = {}
        for match in recognize_all(sentence.text, self._intents, slot_lists=self._lists):
            slots = {name: entity.value for name, entity in match.entities.items()}
            intent = _intent(match.intent.name, slots, sentence, words.strip())
            if intent is not None:
                found[intent.model_dump_json()] = intent
        return next(iter(found.values())) if len(found) == 1 else None

    def examples(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Every documented sentence as (words, kind, fields): help shows them and the tests check them."""
        return [
            (words, entry["kind"], fields) for entry in self._table["intent"] for words, fields in entry["examples"]
        ]

    @cached_property
    def _table(self) -> dict[str, Any]:
        return tomllib.loads((files("bruno.assistant") / "grammar.toml").read_text(encoding="utf-8"))

    @cached_property
    def _intents(self) -> Any:
        from hassil.intents import Intents

        spoken_of = [entry for entry in self._table["intent"] if entry["sentences"]]
        entries = {entry["kind"]: {"data": [{"sentences": entry["sentences"]}]} for entry in spoken_of}
        return Intents.from_dict({"language": "en", "intents": entries, "expansion_rules": self._table["rules"]})

    @cached_property
    def _gpu_words(self) -> dict[str, str]:
        """Everything that may be said for a GPU -> its short name ("rtx 4090", "4090", "4090s" and "rtx4090" -> rtx4090)."""
        said = {
            name.lower().replace("_", " "): short for short, names in self._gpus.items() for name in (short, *names)
        }
        said |= {
            phrase.removeprefix("rtx").strip(): short for phrase, short in said.items() if phrase.startswith("rtx")
        }
        return {f"{phrase}s": short for phrase, short in said.items()} | said

    @cached_property
    def _lists(self) -> dict[str, Any]:
        from hassil.intents import TextSlotList, WildcardSlotList

        figures = [(f"zfig{place}", place) for place in range(_PLACES)]
        names = [(f"zname{place}", -1 - place) for place in range(_PLACES)]
        lists: dict[str, Any] = {name: TextSlotList.from_tuples(figures, name=name) for name in _NUMBERS}
        lists |= {name: TextSlotList.from_tuples(names, name=name) for name in ("model", "behaviour")}
        lists["target"] = TextSlotList.from_tuples(names + figures, name="target")
        # A GPU may be a name nobody knows: the operator then suggests the nearest, which beats "not understood".
        lists["gpu"] = TextSlotList.from_tuples([*self._gpu_words.items(), *names], name="gpu")
        lists["trouble"] = TextSlotList.from_strings(self._table["trouble"]["words"], name="trouble")
        lists["anything"] = WildcardSlotList(name="anything")
        return lists

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        sentences = [s for entry in self._table["intent"] for s in entry["sentences"]]
        text = " ".join([*sentences, *self._table["rules"].values(), *self._table["trouble"]["words"]]).lower()
        gpu_words = {word for phrase in self._gpu_words for word in phrase.split()}
        return frozenset(_WORD.findall(_LITERAL.sub(" ", text))) | gpu_words

    def _take_names_out(self, words: str) -> _Sentence | None:
        out: list[str] = []
        names: list[str] = []
        figures: list[str] = []
        for raw in words.replace("\u2019", "'").split():
            token = raw.strip(',;!"').rstrip(".?!:") or raw
            unit = _WITH_UNIT.fullmatch(token)
            parts = list(unit.groups()) if unit and token.lower() not in self._vocabulary else [token]
            for part in parts:
                if _PER_HOUR.fullmatch(part):
                    out.append("perhour")
                    continue
                if part == "$":
                    continue
                part = _FIGURES_IN_WORDS.get(part.lower(), part)  # noqa: PLW2901
                figure = _FIGURE.fullmatch(part)
                if part.lower() in self._vocabulary:
                    out.append(part.lower())
                elif figure:
                    out.append(f"zfig{len(figures)}")
                    figures.append(figure[1])
                else:
                    out.append(f"zname{len(names)}")
                    names.append(part)
        if len(names) > _PLACES or len(figures) > _PLACES:
            return None
        return _Sentence(" ".join(out), tuple(names), tuple(figures))


def _intent(kind: str, slots: dict[str, Any], sentence: _Sentence, words: str) -> Intent | None:
    values: dict[str, Any] = {}
    for name, value in slots.items():
        if name in ("trouble", "anything"):
            continue
        if isinstance(value, str):
            values[name] = value
        else:
            values[name] = sentence.figures[value] if value >= 0 else sentence.names[-1 - value]
    if kind in _RULES:
        amount = float(values["max_dph"]) if "max_dph" in values else values.get("gpu")
        return SetConstraint(rule=kind, value=amount, words=words)  # type: ignore[arg-type]
    if kind == "report_trouble":
        values["words"] = words
    try:
        return intent_adapter.validate_python({"kind": kind, **values})
    except ValidationError:
        return (
            None  # a figure out of range (0 GPUs, 100 of them): the operator answers "not understood" with suggestions
        )
