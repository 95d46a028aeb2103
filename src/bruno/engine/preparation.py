"""From prompts to what every trial of a run shares: captures, the directions that are removed, the rules of the edit.

Runs the model; changes nothing in it. What was found is kept in the run's folder, so that a resumed run captures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bruno.engine.data.prompts import PromptSets, read
from bruno.engine.data.source import Source
from bruno.engine.directions.find import DirectionSet, Samples, find_directions
from bruno.engine.directions.heads import attribute_heads, choose_heads
from bruno.engine.directions.refinement import refine
from bruno.engine.edits.build import EditRules, Kernel, TrialEdit, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.events import Emit, Fallback, Notice
from bruno.engine.folder import load_directions, save_directions, write_json
from bruno.engine.model.architectures import find_mixtures
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import EncodedPrompts, encode
from bruno.engine.model.generate import first_token_logprobs, generate, prepare
from bruno.engine.model.loading import LoadedModel
from bruno.engine.model.routing import busiest, expert_frequencies
from bruno.engine.scoring.detectors import Detector
from bruno.engine.scoring.scores import kl_divergence
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings

RULES_FILE = "rules.json"
_PRICED = 32  # good prompts that a refinement round's KL divergence is measured on


@dataclass(frozen=True)
class Prepared:
    """What every trial of a run shares."""

    directions: DirectionSet
    rules: EditRules


@dataclass
class Preparation:
    """Captures, directions and rules for one run.

    Args:
        loaded: the model, with no session active.
        prompts: the run's prompts; the training sets are read.
        settings: `directions`, `protection`, `edit`, `data`, `scoring` and `loading` are read.
        detector: tells which bad prompts the model shows the behaviour on, where a method needs to know.
        emit: hears what was found, and what could not apply.
    """

    loaded: LoadedModel
    prompts: PromptSets
    settings: EngineSettings
    detector: Detector
    emit: Emit

    def make(self, folder: Path, key: str) -> Prepared:
        """From an earlier start of the same run where `folder` keeps it under `key`, or from the prompts now."""
        directions, chosen = load_directions(folder, key), load_chosen(folder, key)
        if directions is not None and chosen is not None:
            self.emit(Notice(text="Directions: those of the earlier start of this run"))
            return Prepared(directions, rules_of(self.settings, *chosen))
        bad, good = self.encode(self.prompts.bad_train), self.encode(self.prompts.good_train)
        samples = self._samples(bad, good)
        directions = find_directions(samples, self.settings, self.emit, device=self.loaded.device)
        rules = self._rules(directions, bad, good)
        if self.settings.directions.refinement_rounds:
            directions = self._refined(directions, samples, rules, bad, good)
        save_directions(folder, directions, key)
        write_json(folder / RULES_FILE, {"key": key, "heads": _pairs(rules.heads), "experts": _pairs(rules.experts)})
        strongest = int(directions.separation.argmax())
        self.emit(
            Notice(
                text=f"Directions from {len(bad)} + {len(good)} prompts ({', '.join(directions.used)}); the classes are "
                f"furthest apart after {strongest} blocks: {directions.separation[strongest]:.1f} standard deviations"
            )
        )
        return Prepared(directions, rules)

    def encode(self, prompts: Sequence[str]) -> EncodedPrompts:
        """Prompts as conversations; says how many were too long."""
        data = self.settings.data
        encoded = encode(
            self.loaded.tokenizer, prompts, system_prompt=data.system_prompt, max_tokens=data.max_prompt_tokens
        )
        if encoded.truncated:
            text = f"{encoded.truncated} prompts were longer than {data.max_prompt_tokens} tokens and lost their middle"
            self.emit(Notice(text=text, level="warning"))
        return encoded

    def _capture(self, prompts: EncodedPrompts) -> torch.Tensor:
        quantile = self.settings.directions.winsorize_quantile
        return capture(self.loaded, prompts, emit=self.emit, winsorize_quantile=quantile)

    def _samples(self, bad: EncodedPrompts, good: EncodedPrompts) -> Samples:
        """Captures of everything that the chosen methods read, and nothing else."""
        protection = self.settings.protection
        helpful = plain = capability = None
        if protection.orthogonalize_directions:
            helpful = self._optional(protection.helpful)
        if protection.sacred_directions:
            capability = self._optional(protection.sacred)
        if helpful is not None or capability is not None:
            plain = self._optional(protection.plain)
        return Samples(
            bad=self._capture(bad),
            good=self._capture(good),
            refused=self._refused(bad),
            helpful=helpful,
            plain=plain,
            capability=capability,
        )

    def _optional(self, source: str) -> torch.Tensor | None:
        """Captures of a protection's prompts; None when its source cannot be read: then the protection is left out, which
        an event says where directions are made.

        Raises:
            InputError: the setting names no source at all.
        """
        named = Source.parse(source)
        try:
            prompts = read(named, at_most=self.settings.protection.plain_count)
        except InputError as error:
            self.emit(Notice(text=str(error), level="warning"))
            return None
        return self._capture(self.encode(prompts))

    def _refused(self, bad: EncodedPrompts) -> torch.Tensor | None:
        """Which training prompts the base model shows the behaviour on, [n] bool; None when no method asks."""
        if not (self.settings.directions.supervised_probe or self.settings.edit.compliance_addition):
            return None
        rows = self.settings.loading.batch_size
        answers = generate(
            self.loaded,
            prepare(self.loaded, bad, emit=self.emit, rows=rows),
            max_new_tokens=self.settings.scoring.max_new_tokens,
            settled=self.detector.settled,
            rows=rows,
        )
        return torch.tensor([self.detector.shows(text) for text in answers.texts[0]])

    def _rules(self, directions: DirectionSet, bad: EncodedPrompts, good: EncodedPrompts) -> EditRules:
        edit = self.settings.edit
        heads = experts = None
        if edit.heads:
            attribution = attribute_heads(self.loaded, bad, good, directions, emit=self.emit)
            heads = choose_heads(attribution, edit.head_share)
            count = sum(map(len, heads.values()))
            text = f"Heads: the {count} that write most of the direction are edited, in {len(heads)} blocks"
            self.emit(Notice(text=text))
        if edit.expert_share < 1 and find_mixtures(self.loaded.writers):
            frequencies = expert_frequencies(self.loaded, bad, emit=self.emit)
            experts = busiest(frequencies, edit.expert_share)
            count = sum(map(len, experts.values()))
            text = f"Experts: the {count} that serve {edit.expert_share:.0%} of the bad prompts' tokens are edited"
            self.emit(Notice(text=text))
        self._name_what_does_not_apply()
        return rules_of(self.settings, heads, experts)

    def _name_what_does_not_apply(self) -> None:
        """Settings for experts on a model that has none: said, not passed over."""
        edit = self.settings.edit
        if find_mixtures(self.loaded.writers) or (edit.expert_share == 1 and not edit.router):
            return
        self.emit(Fallback(method="experts", reason=f"{self.loaded.name} has none", instead="the edit without them"))

    def _refined(
        self,
        directions: DirectionSet,
        samples: Samples,
        rules: EditRules,
        bad: EncodedPrompts,
        good: EncodedPrompts,
    ) -> DirectionSet:
        priced = prepare(
            self.loaded,
            EncodedPrompts(good.ids[:_PRICED], good.pad_id),
            emit=self.emit,
            rows=self.settings.loading.batch_size,
        )
        base = first_token_logprobs(self.loaded, priced)[0]
        with EditSession(self.loaded.writers, max_trials=1) as session:

            def with_edit(chosen: DirectionSet, then: Callable[[], torch.Tensor]) -> torch.Tensor:
                session.write(build_edits([removed_whole(self.loaded)], chosen, self.loaded.writers, rules))
                try:
                    return then()
                finally:
                    session.off()

            def captures(chosen: DirectionSet) -> tuple[torch.Tensor, torch.Tensor]:
                return with_edit(chosen, lambda: self._capture(bad)), with_edit(chosen, lambda: self._capture(good))

            def price(chosen: DirectionSet) -> float:
                edited = with_edit(chosen, lambda: first_token_logprobs(self.loaded, priced, session=session)[0])
                return kl_divergence(base, edited)

            return refine(
                directions,
                samples,
                self.settings.directions,
                capture_with_edit=captures,
                kl_of=price,
                emit=self.emit,
                device=self.loaded.device,
            )


def removed_whole(loaded: LoadedModel) -> TrialEdit:
    """Each block's own directions removed whole from everything that writes."""
    tent = Kernel(max_weight=1.0, position=0.0, min_fraction=1.0, reach=float(loaded.layers))
    return TrialEdit("per layer", None, {writer.component: tent for writer in loaded.writers})


def rules_of(
    settings: EngineSettings,
    heads: Mapping[int, tuple[int, ...]] | None = None,
    experts: Mapping[int, tuple[int, ...]] | None = None,
) -> EditRules:
    """The rules as the settings say, with the heads and experts that were chosen."""
    edit = settings.edit
    return EditRules(
        norm_mode=edit.norm_mode,
        layer_profile=tuple(edit.layer_profile),
        compliance_strength=edit.caa_strength if edit.compliance_addition else 0.0,
        heads=heads,
        experts=experts,
        router=edit.router,
    )


def _pairs(chosen: Mapping[int, tuple[int, ...]] | None) -> list[list] | None:
    return None if chosen is None else [[layer, list(members)] for layer, members in sorted(chosen.items())]


def load_chosen(folder: Path, key: str) -> tuple[Mapping[int, tuple[int, ...]] | None, ...] | None:
    """Heads and experts that an earlier start chose under this key; None when nothing usable is kept."""
    try:
        kept = json.loads((folder / RULES_FILE).read_text())
        if kept["key"] != key:
            return None
        return tuple(
            None if kept[name] is None else {int(layer): tuple(map(int, members)) for layer, members in kept[name]}
            for name in ("heads", "experts")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # made again from the prompts, as the directions are
