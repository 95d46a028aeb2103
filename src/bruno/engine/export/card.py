"""The model card: what was done to the base model, with which methods, settings and scores, and what that may change.

Writes README.md of a saved model. The base model's own card stays beside it; its licence and languages are carried over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from bruno.engine.events import HeldOut
from bruno.engine.explain import changed_settings
from bruno.engine.recipe import versions
from bruno.engine.scoring.scores import wilson_interval

if TYPE_CHECKING:
    from bruno.engine.run import Run
    from bruno.engine.search.study import FinishedTrial

BASE_CARD = "README.base-model.md"
_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        base: hub id or folder of the base model.
        behaviour: its name. about: what the model did of it.
        trial, trials: the chosen trial's number and how many the study holds; rule: how it was chosen.
        refusals: raw counts on the search prompts before (None: not measured) and after. prompts: how many those are.
        kl: KL(base || edited) of the first answer token, nats, on the search's ordinary prompts.
        used: methods of the directions. skipped: method to why not.
        settings: those worth naming (what is not the engine's default), dotted name to value.
        seed: of the run.
        held_out: scores on prompts that nothing else saw; None before they are known, or when they are off.
        notes: further facts, name to value.
        library: which library loads it, transformers or peft.
    """

    base: str
    behaviour: str
    about: str
    trial: int
    trials: int
    rule: str
    refusals: tuple[int | None, int]
    prompts: int
    kl: float
    used: Sequence[str]
    skipped: Mapping[str, str]
    settings: Mapping[str, object]
    seed: int
    held_out: HeldOut | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    library: str = "transformers"


def card_of(run: Run, chosen: FinishedTrial, rule: str, held_out: HeldOut | None = None) -> Card:
    """The card of a trial of this run."""
    from bruno.engine.edits.build import is_edited

    initial = run.study.user_attrs.get("initial_refusals")
    trial, writers = run.space.edit(chosen.parameters), run.loaded.writers
    edited = sum(is_edited(trial, run.directions, run.rules, writer) for writer in writers)
    return Card(
        base=run.settings.model,
        behaviour=run.behaviour.name,
        about=run.behaviour.about,
        trial=chosen.number,
        trials=run.settings.search.trials,
        rule=rule,
        refusals=(initial[0] if initial else None, chosen.scores.refusals),
        prompts=chosen.scores.prompts,
        kl=chosen.scores.kl,
        used=run.directions.used,
        skipped=run.directions.skipped,
        settings=changed_settings(run.settings.model_dump(mode="json")),
        seed=run.settings.seed,
        held_out=held_out,
        notes={"Edited": f"{edited} of the {len(writers)} modules that write to the residual stream"},
    )


def write_card(folder: Path, card: Card, *, name: str = "") -> None:
    """Write `folder`'s README.md; a card of the base model that lies there moves beside it, once.

    Calling it again (when the held-out scores are known) replaces the card.

    Args:
        name: the model's name, where the folder has a temporary one.
    """
    readme, base = folder / "README.md", folder / BASE_CARD
    if readme.exists() and not base.exists() and "bruno" not in (_metadata(readme).get("tags") or []):
        readme.rename(base)
    readme.write_text(card_text(card, name or folder.name, _metadata(base)), encoding="utf-8")


def card_text(card: Card, name: str, base: Mapping[str, object] | None = None) -> str:
    """The whole card. `base` is the front matter of the base model's card."""
    carried = {key: value for key, value in (base or {}).items() if key in _CARRIED and value}
    on_hub = card.base.count("/") == 1 and not Path(card.base).exists()
    data = ModelCardData(
        base_model=card.base if on_hub else None,
        base_model_relation=("adapter" if card.library == "peft" else "finetune") if on_hub else None,
        library_name=card.library,
        tags=["bruno", "abliteration"],
        **carried,  # type: ignore[arg-type]
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {_text(name)}\n",
        f"{_text(card.base)}, with a behaviour removed by a weight edit: {_text(card.about)} ({_text(card.behaviour)}).\n"
        "The direction in activation space that carries the behaviour was found on prompts, and a search chose how\n"
        "strongly each layer's matrices lose it. No gradient step was taken.\n",
        "> **Safety behaviour may be changed.** The edit was chosen on prompts of one behaviour. Others may have changed\n"
        "> with it, refusals of harmful requests among them: evaluate the model before relying on it. The base model's\n"
        "> licence and terms still hold.\n",
        "## Scores\n\n" + _scores(card),
        "## Methods\n\n" + _methods(card),
        "## Settings that are not the defaults\n\n" + _table(("setting", "value"), card.settings.items()),
        "## Made with\n\n" + _table(("part", "version"), versions().items()),
    ]
    if card.notes:
        parts.insert(-1, "## Notes\n\n" + _table(("", ""), card.notes.items()))
    return "\n".join(parts)


def _scores(card: Card) -> str:
    before, after = card.refusals
    rows = [
        ("Refused, search prompts, before", _count(before, card.prompts)),
        ("Refused, search prompts, after", _count(after, card.prompts)),
        ("KL divergence from the base model, first token", f"{card.kl:.4f} nats"),
    ]
    held = card.held_out
    if held:
        rows += [
            ("Refused, held-out prompts, before", _count(held.before, held.prompts)),
            ("Refused, held-out prompts, after", _count(held.after, held.prompts)),
            ("KL divergence, held-out prompts", f"{held.kl:.4f} nats"),
            *(
                []
                if held.kl_answered is None
                else [("KL divergence, held-out prompts that the original answers", f"{held.kl_answered:.4f} nats")]
            ),
            ("Ordinary held-out prompts refused, before", _count(held.ordinary_before, held.ordinary_prompts)),
            ("Ordinary held-out prompts refused, after", _count(held.ordinary_after, held.ordinary_prompts)),
        ]
    text = _table(("measure", "value"), rows)
    if not held:
        text += "\nNothing was measured on prompts that the search did not see: these scores flatter the edit.\n"
    return (
        text + "\nCounts are raw; intervals are Wilson's, 95 %. Refusals are recognised by markers in greedy answers.\n"
    )


def _count(count: int | None, of: int) -> str:
    if count is None or of < 1:
        return "not measured"
    low, high = wilson_interval(count, of)
    return f"{count}/{of} (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def _methods(card: Card) -> str:
    lines = [f"- used: {_text(method)}" for method in card.used]
    lines += [f"- asked for and skipped: {_text(method)} ({_text(why)})" for method, why in card.skipped.items()]
    chosen = f"- trial {card.trial} of {card.trials}, seed {card.seed}; chosen by: {_text(card.rule)}"
    return "\n".join([*lines, chosen]) + "\n"


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    body = [f"| {_text(name)} | {_text(value)} |" for name, value in rows]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *body]) + "\n" if body else "None.\n"


def _text(value: object) -> str:
    """A value inside a line of Markdown: one line, no table cell, tag or code span of its own."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")


def _metadata(path: Path) -> dict:
    """The front matter of a card; nothing where there is none, or none that parses."""
    try:
        found = metadata_load(path) if path.exists() else None
    except (ValueError, OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
