"""The pipeline: load, capture, directions, base scores, search, choice, export, held-out report.

Each stage is one function that reads what the stages before it put on `Run`. Works inside the run's folder alone
(`folder.py` holds its lock). Everything worth more than a minute is stored as soon as it is known, so the same command,
given again after a crash, Ctrl-C or a full disk, starts at what is missing.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import optuna
from filelock import FileLock

from bruno.engine.crew import crew_of, worker_name
from bruno.engine.data.behaviours import Behaviour, detector, load_behaviour, with_defaults
from bruno.engine.data.prompts import PromptSets, load_prompt_sets
from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.build import EditRules, TrialEdit
from bruno.engine.edits.session import EditSession
from bruno.engine.events import (
    Emit,
    Finished,
    HeldOut,
    InitialScores,
    Interrupted,
    ModelSaved,
    Notice,
    TrialSelected,
)
from bruno.engine.export.adapter import save_adapter
from bruno.engine.export.card import card_of, write_card
from bruno.engine.export.write import export
from bruno.engine.folder import LIBRARIES_FILE
from bruno.engine.menu import choose_trials
from bruno.engine.model.architectures import find_mixtures
from bruno.engine.model.loading import LoadedModel, load, locate
from bruno.engine.model.room import trials_that_fit
from bruno.engine.model.routing import routing_health
from bruno.engine.place import Team, announce, place_of_study, short_name, timed
from bruno.engine.preparation import Preparation, Prepared
from bruno.engine.recipe import recipe_of, write_recipe
from bruno.engine.report import write_report
from bruno.engine.scoring.held_out import held_out_report
from bruno.engine.scoring.result import Known, Scores, Stopped
from bruno.engine.scoring.scores import Scorer
from bruno.engine.scoring.screening import screening_for
from bruno.engine.search.apart import work_apart
from bruno.engine.search.bookkeeper import Seat
from bruno.engine.search.choice import choose
from bruno.engine.search.evaluation import Evaluate
from bruno.engine.search.fingerprint import fingerprint
from bruno.engine.search.screening import say_screening
from bruno.engine.search.space import Space
from bruno.engine.search.storage import let_go, on_server, open_study
from bruno.engine.search.study import (
    FinishedTrial,
    Plan,
    Stop,
    finished_trials,
    remaining,
    search,
    stop_on_signals,
)
from bruno.errors import BrunoError
from bruno.settings.engine import EngineSettings


def run(settings: EngineSettings, folder: Path, emit: Emit) -> bool:
    """Do everything that `settings` asks for, in `folder`, whose lock is held.

    Returns:
        True when all is done, False when it was asked to stop first (everything is saved then).

    Raises:
        BrunoError: what happened, to which thing, what to do.
    """
    began = time.monotonic()
    behaviour = load_behaviour(settings)
    settings, defaults = with_defaults(settings, behaviour)
    announce(settings, behaviour, defaults, folder, emit)
    prompts = load_prompt_sets(settings, behaviour, emit)
    seconds: dict[str, float] = {}
    team = Team(worker_name(), folder, deals=True) if on_server(settings.search.storage) else None
    if (crew := crew_of(settings, emit)) is not None:
        team = Team(worker_name(), folder, deals=False)
        identity = fingerprint(settings, behaviour, prompts, locate(settings))
        with timed(seconds, "search"):
            if not crew.search(place_of_study(settings, behaviour, folder), identity, folder, emit):
                return False
    with timed(seconds, "load"):
        loaded = load(settings, emit)
    the_run = Run(settings, behaviour, folder, emit, prompts, loaded, seconds, team)
    the_run.warn_of_little_room()
    if not the_run.search():
        return False
    chosen, rule = the_run.choose()
    for trial in chosen:
        saved = the_run.save(trial, rule)
        held_out = the_run.held_out(trial)
        seconds["all"] = round(time.monotonic() - began, 1)
        the_run.describe(trial, rule, saved, held_out, of_the_run=trial is chosen[0])
    emit(Finished(seconds=time.monotonic() - began))
    return True


@dataclass
class Run:
    """One run's parts, each made when it is first needed: a study that is already whole goes straight to saving."""

    settings: EngineSettings
    behaviour: Behaviour
    folder: Path
    emit: Emit
    prompts: PromptSets
    loaded: LoadedModel
    seconds: dict[str, float] = field(default_factory=dict)
    team: Team | None = None
    """Set where others work on the same study."""

    @cached_property
    def identity(self) -> dict[str, str]:
        return fingerprint(self.settings, self.behaviour, self.prompts, self.loaded.source)

    @cached_property
    def study(self) -> optuna.Study:
        place, team = place_of_study(self.settings, self.behaviour, self.folder), self.team
        if team is None:
            return open_study(*place, self.identity)
        stored = self.settings.model_dump(mode="json") if team.deals else None
        return open_study(*place, self.identity, heartbeat=self.settings.search.heartbeat, settings=stored)

    @cached_property
    def prepared(self) -> Prepared:
        """Directions and rules: kept from an earlier start of the same run, or taken from the prompts now."""
        detects = detector(self.behaviour, self.settings)
        with timed(self.seconds, "directions"):
            preparation = Preparation(self.loaded, self.prompts, self.settings, detects, self.emit)
            key = json.dumps(self.identity, sort_keys=True)
            if self.team is None:
                return preparation.make(self.folder, key)
            with FileLock(self.team.kept / "directions.lock"):  # the first of them finds them, the others read them
                return preparation.make(self.team.kept, key)

    @property
    def directions(self) -> DirectionSet:
        return self.prepared.directions

    @property
    def rules(self) -> EditRules:
        return self.prepared.rules

    @cached_property
    def space(self) -> Space:
        components = tuple(dict.fromkeys(writer.component for writer in self.loaded.writers))
        return Space(self.loaded.layers, components, directions=self.directions.vectors.shape[1])

    @cached_property
    def batch(self) -> int:
        """Trials evaluated together. A CPU is busy with the rows of one; an accelerator is not."""
        longest = self.settings.scoring.max_new_tokens
        return self.settings.search.trial_batch or trials_that_fit(self.loaded, len(self.prompts.bad_search), longest)

    @property
    def draws_ahead(self) -> bool:
        """Whether another process draws a batch while one is scored: an accelerator should not wait for that; a CPU's cores
        are busy already."""
        return self.loaded.device.type != "cpu"

    @cached_property
    def session(self) -> EditSession:
        return EditSession(self.loaded.writers, max_trials=self.batch)

    def warn_of_little_room(self) -> None:
        """Say now that the disk will not hold the saved model, hours before it would be found out."""
        if not (self.settings.export.save and self.settings.export.max_free_check):
            return
        needed = sum(path.stat().st_size for path in self.loaded.source.glob("*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            text = f"Saving will need {needed / 1e9:.1f} GB in {self.folder}, where {free / 1e9:.1f} GB are free"
            self.emit(Notice(text=text, level="warning"))

    def search(self) -> bool:
        """Base scores and trials, as far as they are missing. False when it was asked to stop first."""
        wanted = self.settings.search.trials
        plan = Plan(
            trials=wanted,
            batch=self.batch,
            startup=self.settings.search.startup_trials or min(20, max(1, wanted // 10)),
            seed=self.settings.seed,
            warm_starts=self.space.warm_starts(self.loaded.family) if self.settings.search.warm_start else (),
            rows=self.batch * len(self.prompts.bad_search),
        )
        scorer = self._scorer_of_search() if remaining(self.study, wanted) else None
        if scorer is not None:
            screening = screening_for(scorer, self.space, self.settings.search.screening, self.emit)
            plan = replace(plan, screening=screening, ahead=screening is None and self.draws_ahead)

        def evaluate(edits: Sequence[TrialEdit], rows: int, known: Sequence[Known]) -> list[Scores | Stopped | str]:
            if scorer is None:
                raise BrunoError("The study lost trials while it was read", fix="Start the same command again")
            against = known if self.settings.search.stop_dominated else ()
            return self._with_healthy_routing(scorer, scorer.score_against(against, edits, rows))

        with timed(self.seconds, "search"), stop_on_signals() as stop, self.session:
            whole = self._search(evaluate, plan, stop)
        say_screening(self.study, len(self.prompts.bad_search), self.emit)
        if not whole:
            self.emit(Interrupted(completed=wanted - remaining(self.study, wanted), trials=wanted))
        return whole

    def _search(self, evaluate: Evaluate, plan: Plan, stop: Stop) -> bool:
        team = self.team
        if team is None and not plan.ahead:
            return search(self.study, self.space, evaluate, plan, self.emit, stop)
        seat = Seat(
            *place_of_study(self.settings, self.behaviour, self.folder),
            self.space,
            plan,
            name=team.name if team is not None else "",
            heartbeat=self.settings.search.heartbeat,
            dealer=team is not None and team.deals,
            warnings=self.folder / LIBRARIES_FILE,
        )
        let_go(self.study)  # the process beside this one opens its own connections
        share = work_apart(seat, evaluate, self.emit, stop)
        if share.whole and team is not None:
            text = f"The study {seat.study} is whole: {plan.trials} trials, {share.scored} of them by this worker, "
            self.emit(Notice(text=text + f"whose model waited for its next batch {share.waited:.1%} of the time"))
        return share.whole

    def _with_healthy_routing(self, scorer: Scorer, scores: list[Scores | Stopped]) -> list[Scores | Stopped | str]:
        """The scores of a batch that is still active; the reason instead where its routing collapsed."""
        least = self.settings.edit.min_routing_health
        if not least or not find_mixtures(self.loaded.writers):
            return list(scores)
        health = routing_health(self.loaded, scorer.good.prompts, emit=self.emit, session=self.session)
        return [
            score if value >= least else f"its routing health is {value:.2f}, below {least:g}"
            for score, value in zip(scores, health, strict=True)
        ]

    def _scorer_of_search(self) -> Scorer:
        with timed(self.seconds, "base"):
            scorer = self.scorer(self.prompts.bad_search, self.prompts.good_search)
            counts = self.study.user_attrs.get("initial_refusals")
            if counts is None:
                counts = [scorer.base_refusals(), scorer.prompts]
                self.study.set_user_attr("initial_refusals", counts)
        self.emit(InitialScores(refusals=counts[0], prompts=counts[1]))
        return scorer

    def scorer(self, bad: Sequence[str], good: Sequence[str]) -> Scorer:
        """A scorer on these prompts, with this run's directions and settings."""
        return Scorer(
            self.loaded,
            self.session,
            self.directions,
            bad=bad,
            good=good,
            detector=detector(self.behaviour, self.settings),
            settings=self.settings,
            emit=self.emit,
            rules=self.rules,
        )

    def choose(self) -> tuple[list[FinishedTrial], str]:
        """The trials to save, and how they were chosen: one by the stated rule; any, or none, from a menu where that was
        asked for and someone is there to answer."""
        trials = finished_trials(self.study)
        if not trials:
            raise BrunoError("No trial has a score", fix="Read the log above for why they failed")
        menu = not self.settings.search.auto_select
        if menu and sys.stdin.isatty() and sys.stdout.isatty():
            chosen, rule = choose_trials(trials), "the person at the terminal"
        else:
            if menu:
                self.emit(Notice(text="No terminal for a menu: choosing as auto_select does", level="warning"))
            best, rule = choose(trials, self.settings.search.kl_ceiling)
            chosen = [best]
        for trial in chosen:
            scores = trial.scores
            self.emit(
                TrialSelected(
                    trial=trial.number, refusals=scores.refusals, prompts=scores.prompts, kl=scores.kl, rule=rule
                )
            )
        if not chosen:
            self.emit(
                Notice(text=f"Nothing was chosen and nothing saved; bruno export {self.folder} --trial N saves any")
            )
        return chosen, rule

    def save(self, chosen: FinishedTrial, rule: str) -> Path | None:
        """Write the reshaped model, unless that is off or this trial was saved by an earlier start."""
        if not self.settings.export.save:
            self.emit(Notice(text="Nothing is saved, because export.save is off"))
            return None
        earlier = self.study.user_attrs.get("saved", {}).get(str(chosen.number))
        if earlier and Path(earlier).is_dir():
            self.emit(Notice(text=f"Trial {chosen.number} was saved before"))
            self.emit(ModelSaved(path=earlier))
            return Path(earlier)
        target = self._target(chosen)
        with timed(self.seconds, "save"):
            path = export(
                self.loaded,
                self.space.edit(chosen.parameters),
                self.directions,
                self.rules,
                target,
                emit=self.emit,
                card=card_of(self, chosen, rule),
                check_room=self.settings.export.max_free_check,
            )
        self.study.set_user_attr("saved", {**self.study.user_attrs.get("saved", {}), str(chosen.number): str(path)})
        self.emit(ModelSaved(path=str(path)))
        return path

    def _target(self, chosen: FinishedTrial) -> Path:
        """A folder for the model that does not exist yet: nothing that was saved before is overwritten."""
        name = self.settings.export.name or f"{short_name(self.settings.model)}-bruno"
        names = [name, f"{name}-trial{chosen.number}", *(f"{name}-trial{chosen.number}-{n}" for n in range(2, 100))]
        free = next((self.folder / each for each in names if not (self.folder / each).exists()), None)
        if free is None:
            raise BrunoError(f"{self.folder} holds a hundred models called {name}", fix="Choose another export.name")
        if free.name != name:
            self.emit(Notice(text=f"{self.folder / name} exists already and is kept; saving as {free.name}"))
        return free

    def held_out(self, chosen: FinishedTrial) -> HeldOut | None:
        """Refusals and KL on prompts that neither the directions nor the search saw."""
        if not self.settings.scoring.held_out:
            return None
        with timed(self.seconds, "held_out"), self.session:
            scorer = self.scorer(self.prompts.bad_held_out, self.prompts.good_held_out)
            edit = self.space.edit(chosen.parameters)
            event = held_out_report(scorer, edit, self.behaviour, self.prompts, self.emit)
        self.emit(event)
        return event

    def describe(
        self, chosen: FinishedTrial, rule: str, saved: Path | None, held_out: HeldOut | None, *, of_the_run: bool = True
    ) -> None:
        """Write report, recipe and card into the saved model, and report and recipe beside the study too where this is
        the run's (first) choice."""
        folders = [self.folder] if of_the_run else []
        write_report(self, chosen, rule, saved, held_out, folders)
        write_recipe(recipe_of(self, chosen, rule, saved), *folders, saved)
        if saved is not None:
            write_card(saved, card_of(self, chosen, rule, held_out))
            if self.settings.export.adapter:
                save_adapter(self, chosen, rule, saved)
