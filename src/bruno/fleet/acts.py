"""The acts that cost, end or change something. Each needs a permit for exactly its action, and reads its facts again (skeleton)."""

from __future__ import annotations

from datetime import datetime

from bruno.fleet.vast import Vast
from bruno.guard.actions import CreateInstance, DestroyInstance, RegisterKey, StartInstance, StopInstance
from bruno.guard.permit import Permit


def create(vast: Vast, action: CreateInstance, permit: Permit, now: datetime) -> int:
    """Rent the offer; the id of the instance that carries `action.label`.

    If an instance with that label exists already, its id is returned and nothing is rented. After any failure the list is
    read and the label looked for.

    Raises: Denied (permit), FactsChanged (price, GPU, machine), OfferGone, NoCredit, WrongKey, RentedButStopped,
        Unreachable (nothing sent: the list or the offer cannot be read), OutcomeUnknown (sent, reply lost, label not seen).
    """
    raise NotImplementedError


def start(vast: Vast, action: StartInstance, permit: Permit, now: datetime) -> None:
    """Start a stopped instance. Raises Denied, FactsChanged, InstanceGone, NoCredit, OutcomeUnknown."""
    raise NotImplementedError


def stop(vast: Vast, action: StopInstance, permit: Permit, now: datetime) -> None:
    """Ask for the stop; `waits.wait_stopped` sees it through. Raises Denied, FactsChanged, InstanceGone, OutcomeUnknown."""
    raise NotImplementedError


def destroy(vast: Vast, action: DestroyInstance, permit: Permit, now: datetime) -> None:
    """Delete the instance and its disk; already gone counts as done. Raises Denied, FactsChanged, OutcomeUnknown."""
    raise NotImplementedError


def register_key(vast: Vast, action: RegisterKey, permit: Permit, now: datetime, *, public_key: str) -> None:
    """Give the account (or attach to `action.instance_id`) this public key, unless it is there. Raises Denied, FactsChanged."""
    raise NotImplementedError
