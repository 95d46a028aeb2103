"""StartRun -> Plan: the cheapest offers that fit, the disk with its arithmetic, the price of the whole run."""

from __future__ import annotations

import secrets
from typing import Any

from bruno.errors import Denied
from bruno.fleet.keys import key_pair
from bruno.fleet.models import Account, Listing, Offer
from bruno.guard.actions import Action, CreateInstance, RegisterKey, RunPlaybook
from bruno.guard.disk import GB, DiskNeed, disk_needed
from bruno.guard.plan import Cost, Fact, Plan, Step, lifetime
from bruno.guard.rules import DiskRules
from bruno.intents import StartRun
from bruno.operator.fitting import fit_for
from bruno.operator.market import choose_offers, offer_facts
from bruno.operator.prompts import check_prompts
from bruno.operator.resolve import Model, find_gpu, find_model, slug
from bruno.operator.spread import PLAYBOOK, WAIT_SECONDS, Spread
from bruno.runs.database import address_of
from bruno.runs.money import Estimate, estimate
from bruno.runs.playbook import load_playbook
from bruno.runs.world import World
from bruno.settings.console import Settings
from bruno.settings.engine import EngineSettings
from bruno.settings.secrets import secret

PRICE_SLACK = 1.02
"""How much dearer the offer may have become between plan and rent: two percent, then the plan is shown again."""


def plan_start(
    intent: StartRun,
    world: World,
    listing: Listing,
    account: Account | None,
    disk_rules: DiskRules,
    *,
    spread: Spread | None = None,
) -> Plan:
    """The plan for this request. Reads the provider; changes nothing.

    Args:
        spread: how several instances hang together; None for a run on one.

    Raises:
        InputError: unknown model or GPU, or no offer fits (saying what would).
        Denied: it would fail after renting: no token for a gated model, or a model that the GPU cannot hold.
        Unreachable: the market could not be read.
    """
    settings = world.settings
    model = find_model(intent.model, settings)
    gpu = find_gpu(intent.gpu or model.about.gpu or "h200", settings)
    _check_access(model)
    need = disk_needed(model.about.weights_gb * GB, model.about.size_class, rules=disk_rules)
    disk_gb = intent.disk_gb or need.gb
    name = f"{settings.fleet.label_prefix}-{slug(model.alias)}-{secrets.token_hex(3)}"
    engine = _engine_settings(intent, model, settings, study=name if spread else "")
    alone = (intent.workers or 1) > 1  # each of the workers on one machine has a GPU for itself
    gpus = 1 if alone else intent.count
    fitting = fit_for(model.about, gpu, gpus, settings, EngineSettings.model_validate(engine))
    if fitting.fewer:
        engine["search"] = {**engine.get("search", {}), "trial_batch": fitting.fewer}
    unchecked = check_prompts(engine)
    offers = choose_offers(intent, gpu, disk_gb, world)
    trials = intent.trials or model.about.trials or settings.search.trials
    per_hour = sum(offer.dph_total for offer in offers)
    lines = [offer.inet_down_mbps for offer in offers]
    forecast = estimate(
        model=model.about.id,
        size_class=model.about.size_class,
        weights_gb=model.about.weights_gb,
        trials=trials,
        dph_total=per_hour,
        download_mbps=min((line for line in lines if line), default=None),  # all are paid for until the slowest is up
        hours=0 if intent.trials else model.about.hours,
        gpu=gpu.name,
        workers=len(offers) if spread else intent.workers or 1,
    )
    created, expires = lifetime(world.clock())
    actions = _actions(world, offers, disk_gb, name, engine)
    per_day = [offer.stopped_per_day for offer in offers]
    return Plan(
        title=f"Reshape {model.about.id} on {_machines(offers)}",
        run_id=name,
        steps=tuple(Step(action=action, why=why) for action, why in actions),
        facts=(*_facts(model, disk_gb, listing, account, trials), *offer_facts(offers, name), *fitting.facts()),
        notes=(
            *(spread.notes() if spread else ()),
            *fitting.notes(),
            *_notes(model, need, disk_gb, forecast, engine, len(offers)),
            *unchecked,
        ),
        cost=Cost(
            per_hour=per_hour,
            hours=forecast.hours,
            total=forecast.total,
            stopped_per_day=None if None in per_day else sum(each or 0 for each in per_day),
        ),
        created_at=created,
        expires_at=expires,
    )


def _check_access(model: Model) -> None:
    if model.about.gated and not secret("hf_token"):
        raise Denied(
            f"{model.about.id} is gated on the hub and no token is set, so the run would fail after renting",
            fix="Accept the licence on the model's page, then set HF_TOKEN",
        )


def _engine_settings(intent: StartRun, model: Model, settings: Settings, *, study: str) -> dict[str, Any]:
    """What somebody said about the engine: the file and environment first, then the alias, then the sentence.

    A database's address travels without its password, which is no part of a plan.
    """
    said = settings.model_dump(mode="json", exclude_unset=True, include=set(EngineSettings.model_fields))
    said |= {"model": model.about.id}
    if model.about.trust_remote_code:
        said["trust_remote_code"] = True
    behaviour = intent.behaviour or model.about.behaviour
    if behaviour:
        said["behaviour"] = behaviour
    search = dict(said.get("search", {}))
    trials = intent.trials or model.about.trials
    if trials:
        search["trials"] = trials
    if settings.search.storage:
        search["storage"] = address_of(settings.search.storage).address
    if intent.workers and intent.instances == 1:
        search["workers"] = intent.workers
    if study:
        search["study"] = settings.search.study or study
    if search:
        said["search"] = search
    return said


def _actions(
    world: World, offers: list[Offer], disk_gb: float, name: str, engine: dict[str, Any]
) -> list[tuple[Action, str]]:
    fleet = world.settings.fleet
    key = key_pair(world.paths.keys)
    actions: list[tuple[Action, str]] = []
    if not any(line.split()[:2] == key.public_key.split()[:2] for line in world.vast.ssh_keys()):
        actions.append((RegisterKey(fingerprint=key.fingerprint), "so that bruno can log in"))
    several = len(offers) > 1
    which = "one of the cheapest offers that fit" if several else "the cheapest offer that fits"
    for label, offer in zip(labels_of(name, len(offers)), offers, strict=True):
        rent = CreateInstance(
            offer_id=offer.id,
            machine_id=offer.machine_id or 0,
            gpu=offer.gpu,
            gpu_count=offer.gpu_count,
            image=fleet.image,
            disk_gb=disk_gb,
            label=label,
            max_dph=round(offer.dph_total * PRICE_SLACK, 4),
        )
        actions.append((rent, f"{which}, {offer.geolocation or 'place unknown'}"))
    book = load_playbook(PLAYBOOK if several else fleet.playbook)
    storage = engine.get("search", {}).get("storage", "")
    worker = ("worker", "--config", "config.toml", "--study", engine.get("search", {}).get("study", ""))
    run = RunPlaybook(
        playbook=book.name,
        steps=tuple(f"{step.title}{' (the first alone)' if step.on == 'first' else ''}" for step in book.steps),
        engine_argv=("python", "-m", "bruno.engine", "abliterate", "--config", "config.toml"),
        model=str(engine["model"]),
        behaviour=str(engine.get("behaviour", "")),
        settings=engine,
        workers=labels_of(name, len(offers)) if several else (),
        worker_argv=("python", "-m", "bruno.engine", *worker, "--wait", str(WAIT_SECONDS)) if several else (),
        database=storage if several else "",
    )
    actions.append((run, book.about))
    return actions


def labels_of(name: str, instances: int) -> tuple[str, ...]:
    """The label of each instance: the run's name, numbered where there are several."""
    return (name,) if instances == 1 else tuple(f"{name}-{number}" for number in range(1, instances + 1))


def _facts(model: Model, disk_gb: float, listing: Listing, account: Account | None, trials: int) -> tuple[Fact, ...]:
    return (
        Fact(name="model_bytes", value=model.about.weights_gb * GB, source="config"),
        Fact(name="model_class", value=model.about.size_class or None, source="config"),
        Fact(name="disk_gb", value=disk_gb, source="arithmetic"),
        Fact(name="live_instances", value=listing.live(), source="provider", checked=True),
        Fact(name="credit", value=account.credit if account else None, source="provider"),
        Fact(name="trials", value=trials, source="config"),
    )


def _notes(
    model: Model, need: DiskNeed, disk_gb: float, forecast: Estimate, engine: dict[str, Any], instances: int
) -> tuple[str, ...]:
    notes = [f"disk: {line}" for line in need.arithmetic]
    notes.append(f"disk asked for{f' on each of {instances}' if instances > 1 else ''}: {disk_gb:g} GB")
    notes += [f"time: {line}" for line in forecast.arithmetic]
    if forecast.basis:
        notes.append(f"time: {forecast.basis}")
    if engine.get("trust_remote_code"):
        notes.append(f"{model.about.id} brings Python code of its own; it is run on the instance (--trust-remote-code)")
    return tuple(notes)


def _machines(offers: list[Offer]) -> str:
    """`H200`, `2 x H200`, or `4 instances with one H200 each`."""
    first = offers[0]
    if len(offers) == 1:
        return f"{first.gpu_count} x {first.gpu}" if first.gpu_count > 1 else first.gpu
    kinds = " or ".join(dict.fromkeys(offer.gpu for offer in offers))
    return f"{len(offers)} instances with {f'{first.gpu_count} x' if first.gpu_count > 1 else 'one'} {kinds} each"
