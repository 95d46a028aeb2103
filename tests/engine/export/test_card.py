"""The model card: every fact it is given, as valid metadata and Markdown that a name cannot break."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bruno import __version__
from bruno.engine.events import HeldOut
from bruno.engine.export.card import BASE_CARD, Card, write_card
from bruno.engine.scoring.scores import wilson_interval

CARD = Card(
    base="owner/base",
    behaviour="coin",
    about="tossing a coin",
    trial=17,
    trials=40,
    rule="fewest refusals",
    refusals=(20, 1),
    prompts=24,
    kl=0.1234,
    used=("mean difference", "projected"),
    skipped={"supervised probe": "only 3 answered"},
    settings={"edit.norm_mode": "row"},
    seed=5,
)
HELD = HeldOut(
    before=9,
    after=2,
    prompts=10,
    before_interval=wilson_interval(9, 10),
    after_interval=wilson_interval(2, 10),
    kl=0.2,
    ordinary_before=0,
    ordinary_after=1,
    ordinary_prompts=12,
)


def test_it_says_what_was_done(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\ntags: [chat]\n---\nthe base card")
    write_card(tmp_path, CARD, name="my-model")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model == "owner/base"
    assert card.data.library_name == "transformers" and "bruno" in card.data.tags
    low, high = wilson_interval(1, 24)
    for words in (
        "# my-model",
        "tossing a coin (coin)",
        f"1/24 (95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        "0.1234 nats",
        "- used: projected",
        "supervised probe (only 3 answered)",
        "trial 17 of 40, seed 5; chosen by: fewest refusals",
        "| edit.norm_mode | row |",
        f"| bruno | {__version__} |",
        "Safety behaviour may be changed",
        "flatter the edit",
    ):
        assert words in card.text, words
    assert "the base card" in (tmp_path / BASE_CARD).read_text()


def test_written_again_it_adds_the_held_out_scores_and_keeps_the_base_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("the base card")
    write_card(tmp_path, CARD)
    write_card(tmp_path, replace(CARD, held_out=HELD))
    text = (tmp_path / "README.md").read_text()
    low, high = HELD.after_interval
    assert f"held-out prompts, after | 2/10 (95 % interval {100 * low:.1f} to {100 * high:.1f} %)" in text
    assert "Ordinary held-out prompts refused, after | 1/12" in text and "flatter" not in text
    assert (tmp_path / BASE_CARD).read_text() == "the base card"


@pytest.mark.parametrize("base", ["---\nlicense: [\n---\n", "---\n- a\n---\n", "", "\ufeffno matter"])
def test_a_broken_base_card_stops_nothing(tmp_path: Path, base: str) -> None:
    (tmp_path / "README.md").write_text(base)
    write_card(tmp_path, CARD)
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "owner/base"
    assert (tmp_path / BASE_CARD).read_text() == base


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    odd = replace(
        CARD, base=str(tmp_path), about="a | b\n# c <script>", settings={"x`|": "[1\n2]"}, refusals=(None, 0), prompts=1
    )
    write_card(tmp_path, odd)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None and "<script>" not in card.text and "\n# c" not in card.text
    assert "a &#124; b # c &lt;script>" in card.text and "| x&#96;&#124; | [1 2] |" in card.text
    assert "before | not measured" in card.text
