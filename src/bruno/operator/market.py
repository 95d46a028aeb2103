"""Offers for a request: which there are, which to take, and what a plan says of them. Reads the provider; rents nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bruno.errors import InputError
from bruno.fleet.models import Offer, OfferQuery
from bruno.guard.plan import Fact
from bruno.intents import StartRun
from bruno.operator.resolve import Gpu
from bruno.runs.world import World

NOMINAL = 0.9
"""Share of a card's nominal memory that the provider may list: an L40S of 48 GB is listed with 46."""


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


def choose_offers(intent: StartRun, gpu: Gpu, disk_gb: float, world: World) -> list[Offer]:
    """The cheapest offers for what was asked, as many as instances; on machines of their own as far as there are.

    Raises:
        InputError: there are none, or too few, or they cost more than was said; what would do is in the message.
    """
    found = find_offers(world, gpu, count=intent.count, disk_gb=disk_gb, max_dph=intent.max_dph)
    wanted = f"{intent.count} x {gpu.name} with {disk_gb:g} GB of disk"
    if not found:
        raise _none(intent, gpu, disk_gb, wanted, world)
    if len(found) < intent.instances:
        ceiling = f" under ${intent.max_dph:g}/h" if intent.max_dph else ""
        raise InputError(
            f"{intent.instances} instances were asked for, and there are {len(found)} offers for {wanted}{ceiling} now",
            fix=f"Say {len(found)} instances, or another GPU",
        )
    taken = _apart(found)[: intent.instances]
    together = sum(offer.dph_total for offer in taken)
    if intent.instances > 1 and intent.max_dph is not None and together > intent.max_dph:
        raise InputError(
            f"the cheapest {intent.instances} offers for {wanted} cost ${together:.3f}/h together, "
            f"more than ${intent.max_dph:g}/h",
            fix="Take fewer instances, or say a higher price",
        )
    return taken


def offer_facts(offers: Sequence[Offer], name: str) -> tuple[Fact, ...]:
    """What the provider says of each offer: about the plan itself, or about each label where there are several."""
    labels = ("",) if len(offers) == 1 else tuple(f"{name}-{number}" for number in range(1, len(offers) + 1))
    return tuple(fact for offer, label in zip(offers, labels, strict=True) for fact in _facts(offer, label))


def _facts(offer: Offer, about: str) -> tuple[Fact, ...]:
    said = {
        "gpu_memory_gb": offer.gpu_memory_gb,
        "dph_total": offer.dph_total,
        "disk_available_gb": offer.disk_available_gb,
        "reliability": offer.reliability,
        "location": offer.geolocation,
    }
    return tuple(
        Fact(name=key, value=value, source="provider", checked=key == "dph_total", about=about)
        for key, value in said.items()
    )


def _apart(offers: list[Offer]) -> list[Offer]:
    """Cheapest first, those on a machine that none before is on; then the rest: a machine that fails takes one worker with it."""
    ordered = sorted(offers, key=lambda offer: offer.dph_total)
    seen: set[int] = set()
    first = []
    for offer in ordered:
        if offer.machine_id is None or offer.machine_id not in seen:
            first.append(offer)
            seen |= {offer.machine_id} if offer.machine_id is not None else set()
    return first + [offer for offer in ordered if offer not in first]


def _none(intent: StartRun, gpu: Gpu, disk_gb: float, wanted: str, world: World) -> InputError:
    """Why there is no offer, with what would do."""
    dearer = find_offers(world, gpu, count=intent.count, disk_gb=disk_gb, max_dph=None) if intent.max_dph else []
    if dearer:
        cheapest = min(offer.dph_total for offer in dearer)
        return InputError(
            f"no offer for {wanted} under ${intent.max_dph:g}/h",
            fix=f"The cheapest costs ${cheapest:.3f}/h with that disk",
        )
    smaller = find_offers(world, gpu, count=intent.count, disk_gb=8, max_dph=intent.max_dph)
    if smaller:
        most = max((offer.disk_available_gb or 0) for offer in smaller)
        return InputError(f"no offer for {wanted}", fix=f"The offers there are have at most {most:g} GB of disk")
    return InputError(
        f"no offer for {wanted} right now",
        fix=f"Known GPUs: {', '.join(world.settings.gpus)}; offers change within minutes",
    )
