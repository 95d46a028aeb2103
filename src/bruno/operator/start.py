"""StartRun -> Plan: the cheapest offer that fits, the disk with its arithmetic, the price of the whole run."""

from __future__ import annotations

import secrets
from typing import Any

from bruno.errors import Denied, InputError
from bruno.fleet.keys import key_pair
from bruno.fleet.models import Account, Listing, Offer, OfferQuery
from bruno.guard.actions import Action, CreateInstance, RegisterKey, RunPlaybook
from bruno.guard.disk import GB, DiskNeed, disk_needed
from bruno.guard.plan import Cost, Fact, Plan, Step, lifetime
from bruno.guard.rules import DiskRules
from bruno.intents import StartRun
from bruno.operator.fitting import fit_for
from bruno.operator.prompts import check_prompts
from bruno.operator.resolve import Gpu, Model, find_gpu, find_model, slug
from bruno.runs.money import Estimate, estimate
from bruno.runs.playbook import load_playbook
from bruno.runs.world import World
from bruno.settings.engine import EngineSettings
from bruno.settings.secrets import secret

PRICE_SLACK = 1.02
"""How much dearer the offer may have become between plan and rent: two percent, then the plan is shown again."""
NOMINAL = 0.9
"""Share of a card's nominal memory that the provider may list: an L40S of 48 GB is listed with 46."""


def plan_start(
    intent: StartRun, world: World, listing: Listing, account: Account | None, disk_rules: DiskRules
) -> Plan:
    """The plan for this request. Reads the provider; changes nothing.

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
    engine = _engine_settings(intent, model, settings)
    fitting = fit_for(model.about, gpu, intent.count, settings, EngineSettings.model_validate(engine))
    if fitting.fewer:
        engine["search"] = {**engine.get("search", {}), "trial_batch": fitting.fewer}
    unchecked = check_prompts(engine)
    offer = _cheapest(intent, gpu, disk_gb, world)
    trials = intent.trials or model.about.trials or settings.search.trials
    forecast = estimate(
        model=model.about.id,
        size_class=model.about.size_class,
        weights_gb=model.about.weights_gb,
        trials=trials,
        dph_total=offer.dph_total,
        download_mbps=offer.inet_down_mbps,
        hours=0 if intent.trials else model.about.hours,
        gpu=gpu.name,
    )
    name = f"{settings.fleet.label_prefix}-{slug(model.alias)}-{secrets.token_hex(3)}"
    created, expires = lifetime(world.clock())
    actions = _actions(world, offer, disk_gb, name, engine)
    return Plan(
        title=f"Reshape {model.about.id} on {_count(offer)}{offer.gpu}",
        run_id=name,
        steps=tuple(Step(action=action, why=why) for action, why in actions),
        facts=(*_facts(model, offer, disk_gb, listing, account, trials), *fitting.facts()),
        notes=(*fitting.notes(), *_notes(model, need, disk_gb, forecast, engine), *unchecked),
        cost=Cost(
            per_hour=offer.dph_total, hours=forecast.hours, total=forecast.total, stopped_per_day=offer.stopped_per_day
        ),
        created_at=created,
        expires_at=expires,
    )


def find_offers(world: World, gpu: Gpu | None, *, count: int, disk_gb: float, max_dph: float | None) -> list[Offer]:
    """Offers for this GPU, cheapest first, each at its full price for `disk_gb`.

    A card is sold in several sizes under one name (A100 with 40 and with 80 GB): smaller ones than the settings say are left out.
    """
    fleet = world.settings.fleet
    found = world.vast.offers(
        OfferQuery(
            gpu_names=tuple(gpu.about.names) if gpu else (),
            disk_gb=disk_gb,
            gpu_count=count,
            max_dph=max_dph,
            min_reliability=fleet.min_reliability,
            min_download_mbps=fleet.min_download_mbps,
        )
    )
    if gpu is None:
        return found
    least = NOMINAL * gpu.about.memory_gb
    return [offer for offer in found if offer.gpu_memory_gb is not None and offer.gpu_memory_gb >= least]


def _cheapest(intent: StartRun, gpu: Gpu, disk_gb: float, world: World) -> Offer:
    offers = find_offers(world, gpu, count=intent.count, disk_gb=disk_gb, max_dph=intent.max_dph)
    if offers:
        return min(offers, key=lambda offer: offer.dph_total)
    wanted = f"{intent.count} x {gpu.name} with {disk_gb:g} GB of disk"
    dearer = find_offers(world, gpu, count=intent.count, disk_gb=disk_gb, max_dph=None) if intent.max_dph else []
    if dearer:
        cheapest = min(offer.dph_total for offer in dearer)
        raise InputError(
            f"no offer for {wanted} under ${intent.max_dph:g}/h",
            fix=f"The cheapest costs ${cheapest:.3f}/h with that disk",
        )
    smaller = find_offers(world, gpu, count=intent.count, disk_gb=8, max_dph=intent.max_dph)
    if smaller:
        most = max((offer.disk_available_gb or 0) for offer in smaller)
        raise InputError(f"no offer for {wanted}", fix=f"The offers there are have at most {most:g} GB of disk")
    raise InputError(
        f"no offer for {wanted} right now",
        fix=f"Known GPUs: {', '.join(world.settings.gpus)}; offers change within minutes",
    )


def _check_access(model: Model) -> None:
    if model.about.gated and not secret("hf_token"):
        raise Denied(
            f"{model.about.id} is gated on the hub and no token is set, so the run would fail after renting",
            fix="Accept the licence on the model's page, then set HF_TOKEN",
        )


def _engine_settings(intent: StartRun, model: Model, settings: EngineSettings) -> dict[str, Any]:
    """What somebody said about the engine: the file and environment first, then the alias, then the sentence."""
    said = settings.model_dump(mode="json", exclude_unset=True, include=set(EngineSettings.model_fields))
    said |= {"model": model.about.id}
    if model.about.trust_remote_code:
        said["trust_remote_code"] = True
    behaviour = intent.behaviour or model.about.behaviour
    if behaviour:
        said["behaviour"] = behaviour
    trials = intent.trials or model.about.trials
    if trials:
        said["search"] = {**said.get("search", {}), "trials": trials}
    return said


def _actions(world: World, offer: Offer, disk_gb: float, name: str, engine: dict[str, Any]) -> list[tuple[Action, str]]:
    fleet = world.settings.fleet
    key = key_pair(world.paths.keys)
    actions: list[tuple[Action, str]] = []
    if not any(line.split()[:2] == key.public_key.split()[:2] for line in world.vast.ssh_keys()):
        actions.append((RegisterKey(fingerprint=key.fingerprint), "so that bruno can log in"))
    actions.append(
        (
            CreateInstance(
                offer_id=offer.id,
                machine_id=offer.machine_id or 0,
                gpu=offer.gpu,
                gpu_count=offer.gpu_count,
                image=fleet.image,
                disk_gb=disk_gb,
                label=name,
                max_dph=round(offer.dph_total * PRICE_SLACK, 4),
            ),
            f"the cheapest offer that fits, {offer.geolocation or 'place unknown'}",
        )
    )
    book = load_playbook(fleet.playbook)
    steps = tuple(step.title for step in book.steps)
    run = RunPlaybook(
        playbook=book.name,
        steps=steps,
        engine_argv=("python", "-m", "bruno.engine", "abliterate", "--config", "config.toml"),
        model=str(engine["model"]),
        behaviour=str(engine.get("behaviour", "")),
        settings=engine,
    )
    actions.append((run, book.about))
    return actions


def _facts(
    model: Model, offer: Offer, disk_gb: float, listing: Listing, account: Account | None, trials: int
) -> tuple[Fact, ...]:
    return (
        Fact(name="model_bytes", value=model.about.weights_gb * GB, source="config"),
        Fact(name="model_class", value=model.about.size_class or None, source="config"),
        Fact(name="disk_gb", value=disk_gb, source="arithmetic"),
        Fact(name="gpu_memory_gb", value=offer.gpu_memory_gb, source="provider"),
        Fact(name="dph_total", value=offer.dph_total, source="provider", checked=True),
        Fact(name="disk_available_gb", value=offer.disk_available_gb, source="provider"),
        Fact(name="reliability", value=offer.reliability, source="provider"),
        Fact(name="location", value=offer.geolocation, source="provider"),
        Fact(name="live_instances", value=listing.live(), source="provider", checked=True),
        Fact(name="credit", value=account.credit if account else None, source="provider"),
        Fact(name="trials", value=trials, source="config"),
    )


def _notes(model: Model, need: DiskNeed, disk_gb: float, forecast: Estimate, engine: dict[str, Any]) -> tuple[str, ...]:
    notes = [f"disk: {line}" for line in need.arithmetic]
    notes.append(f"disk asked for: {disk_gb:g} GB")
    notes += [f"time: {line}" for line in forecast.arithmetic]
    if forecast.basis:
        notes.append(f"time: {forecast.basis}")
    if engine.get("trust_remote_code"):
        notes.append(f"{model.about.id} brings Python code of its own; it is run on the instance (--trust-remote-code)")
    return tuple(notes)


def _count(offer: Offer) -> str:
    return f"{offer.gpu_count} x " if offer.gpu_count > 1 else ""
