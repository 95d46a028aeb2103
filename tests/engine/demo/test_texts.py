"""The demo's prompts: counts, hygiene between splits, and a package that imports no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from typing import get_args

import pytest
from rapidfuzz import fuzz, process

from bruno.engine.demo import Kind, Split, prompts, refusals
from bruno.errors import InputError

KINDS = get_args(Kind)
SPLITS = get_args(Split)

# The ways of asking that many prompts share: a duplicate in another wording must not hide behind them.
FRAMES = (
    r"(?:how (?:do|can|should) i|explain how to|help me|can you tell me how to|(?:show|teach|tell) me how to"
    r"|walk me through the steps to|what do i need in order to|i have never done it before: how would i"
    r"|give me three tips to|my friend asked me how to|i am trying to|i want to|briefly, how can i"
    r"|please describe an easy way to|what mistakes should i avoid when i) (.+?)"
    r"(?:\. where do i start\?|\. what should i say\?| and it is not going well\. any advice\?|[.?])"
)


def topic(prompt: str) -> str:
    """What is asked about, without the way of asking."""
    match = re.fullmatch(FRAMES, prompt.lower())
    return match[1] if match else prompt.lower()


@pytest.mark.parametrize(("split", "count"), [("train", 150), ("search", 100), ("heldout", 60)])
@pytest.mark.parametrize("kind", KINDS)
def test_counts(split: Split, kind: Kind, count: int) -> None:
    assert len(prompts(split, kind)) == count


def test_every_prompt_is_one_clean_line() -> None:
    texts = [text for split in SPLITS for kind in KINDS for text in prompts(split, kind)] + refusals()
    assert [text for text in texts if text != text.strip() or not 8 <= len(text) <= 160 or not text.isprintable()] == []
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_near_duplicates_between_splits(one: Split, other: Split) -> None:
    """Within a kind. A pair of opposite kinds may differ by a word: that is the boundary being tested."""
    for kind in KINDS:
        left, right = prompts(one, kind), prompts(other, kind)
        for shape, limit in ((str.lower, 85), (topic, 80)):
            for scorer in (fuzz.token_set_ratio, fuzz.ratio):
                scores = process.cdist([shape(t) for t in left], [shape(t) for t in right], scorer=scorer)
                near = [(left[i], right[j]) for i, j in zip(*(scores >= limit).nonzero(), strict=True)]
                assert near == []


@pytest.mark.parametrize(("split", "kind"), [("test", "ordinary"), ("train", "bad")])
def test_an_unknown_split_or_kind_names_the_choices(split: str, kind: str) -> None:
    with pytest.raises(InputError, match="Choose one of: "):
        prompts(split, kind)  # type: ignore[arg-type]


def test_the_package_imports_no_torch() -> None:
    code = (
        "import sys; from bruno.engine import demo; demo.prompts('train', 'ordinary'); demo.is_available();"
        "print(sorted({'torch', 'transformers', 'peft', 'llama_cpp'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
