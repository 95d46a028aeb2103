"""The acts that cost, end or change something. Each needs a permit for exactly its action and reads its facts again first.

One attempt each, never repeated here: the provider knows no idempotency key, so a repeated create rents twice. When a reply is
lost, what really happened is read back from the provider (a rental by its label, a stop by its status); if that does not
tell, the error is `OutcomeUnknown` and the records keep the act as unknown until somebody can see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from bruno.errors import BrunoError, Unreachable
from bruno.fleet.errors import FactsChanged, InstanceGone, OfferGone, OutcomeUnknown, RentedButStopped
from bruno.fleet.keys import fingerprint, same_key
from bruno.fleet.models import Instance, Offer, OfferQuery, State
from bruno.fleet.replies import NoAnswer, shown_words, soft_failure
from bruno.fleet.vast import Vast
from bruno.guard.actions import CreateInstance, DestroyInstance, RegisterKey, StartInstance, StopInstance, Target
from bruno.guard.permit import Permit

LOOK_AGAIN_AFTER = (0.0, 3.0, 6.0)
"""Seconds before each look for an instance whose rental's reply was lost: the list may lag behind."""
_ASK_AGAIN = "Ask again to see how things stand now"
_PRICE_SLACK = 1e-6  # $/h; prices come back through floating point


def create(vast: Vast, action: CreateInstance, permit: Permit, now: datetime) -> int:
    """Rent the offer; the id of the instance that carries `action.label`.

    If an instance with that label exists already, its id is returned and nothing is rented: the label is unique to the run.
    That the instance really appears is for `waits.wait_running` to see; the provider is known to report rentals that never do.

    Raises:
        Denied: the permit does not cover this action.
        FactsChanged: price, GPU, count, machine or room on its disk are not what was confirmed.
        OfferGone, NoCredit, ProviderRefused, WrongKey, RateLimited: the provider said no; nothing was rented.
        RentedButStopped: it said no and left a stopped instance that bills its disk.
        Unreachable: the list or the offer could not be read, so nothing was sent.
        OutcomeUnknown: sent, the reply lost, and no instance with the label seen since.
    """
    permit.require(action, now=now)
    existing = vast.find_by_label(action.label)
    if existing is not None:
        return _usable(existing, action)
    _same_offer(_offer(vast, action), action)
    doing = f"rent offer {action.offer_id}"
    try:
        body = vast.once(
            "create",
            doing,
            lambda sdk: sdk.create_instance(
                action.offer_id,
                image=action.image,
                disk=action.disk_gb,
                label=action.label,
                ssh=True,
                direct=True,
                # Without it an offer that cannot be scheduled becomes a stopped instance that silently bills its disk.
                cancel_unavail=True,
                # A login that lands in tmux would swallow what a person types into it.
                onstart_cmd="touch ~/.no_auto_tmux",
            ),
        )
        error = soft_failure(body, doing=doing)
    except BrunoError as raised:
        error = raised
    if error is None:
        return _contract(vast, body, action)
    if isinstance(error, NoAnswer) and not error.sent:
        raise error
    return _find_rented(vast, action, error)


def start(vast: Vast, action: StartInstance, permit: Permit, now: datetime) -> None:
    """Start a stopped instance; `waits.wait_running` sees whether its GPU was still free.

    Raises: Denied, FactsChanged, InstanceGone, NoCredit, ProviderRefused, Unreachable, OutcomeUnknown.
    """
    permit.require(action, now=now)
    shown = _present(vast, action.target)
    differences = _differences(
        shown, action.target, port=False
    )  # a stopped instance has no direct port; it may get a new one
    if shown.dph_total is None or shown.dph_total > action.max_dph + _PRICE_SLACK:
        price = "unknown" if shown.dph_total is None else f"${shown.dph_total:.4f}/h"
        differences.append(f"price: confirmed up to ${action.max_dph:.4f}/h, now {price}")
    if shown.ends_at is not None and shown.ends_at <= now:
        differences.append(f"contract: ended {shown.ends_at:%Y-%m-%d %H:%M} UTC")
    _unchanged(differences, f"instance {shown.id} was not started")
    _change(
        vast,
        shown.id,
        f"start instance {shown.id}",
        lambda sdk: sdk.start_instance(shown.id),
        happened=lambda seen: seen is not None and seen.intended_status == "running",
    )


def still_as_confirmed(vast: Vast, target: Target, otherwise: str) -> Instance:
    """The instance as the provider shows it now.

    Raises: InstanceGone, Unreachable, FactsChanged (id, label or SSH port; `otherwise` says what was therefore not done).
    """
    shown = _present(vast, target)
    _unchanged(_differences(shown, target), otherwise)
    return shown


def stop(vast: Vast, action: StopInstance, permit: Permit, now: datetime) -> None:
    """Ask for the stop. The provider says `success` at once; only `waits.wait_stopped` knows that it has happened.

    Raises: Denied, FactsChanged (id, label or SSH port), InstanceGone, ProviderRefused, Unreachable, OutcomeUnknown.
    """
    permit.require(action, now=now)
    shown = still_as_confirmed(vast, action.target, f"instance {action.target.instance_id} was not stopped")
    _change(
        vast,
        shown.id,
        f"stop instance {shown.id}",
        lambda sdk: sdk.stop_instance(shown.id),
        happened=lambda seen: seen is None or seen.intended_status == "stopped",
    )


def destroy(vast: Vast, action: DestroyInstance, permit: Permit, now: datetime) -> None:
    """Delete the instance and its disk. One that is gone already counts as done.

    Raises: Denied, FactsChanged (id, label or SSH port), ProviderRefused, Unreachable, OutcomeUnknown.
    """
    permit.require(action, now=now)
    shown = vast.instance(action.target.instance_id)
    if shown is None:
        return
    _unchanged(_differences(shown, action.target), f"instance {shown.id} was not destroyed")
    try:
        _change(
            vast,
            shown.id,
            f"destroy instance {shown.id}",
            lambda sdk: sdk.destroy_instance(shown.id),
            happened=lambda seen: seen is None,
            kind="destroy",
        )
    except InstanceGone:
        return  # a second DELETE answers 404; what was asked for is so


def register_key(vast: Vast, action: RegisterKey, permit: Permit, now: datetime, *, public_key: str) -> None:
    """Give the account this public key, or attach it to `action.instance_id`. A key the account has is not added again.

    Keys are copied into an instance when it is made; one added to the account later does not reach it, so it is attached.

    Raises: Denied, FactsChanged (another key than the one confirmed), InstanceGone, ProviderRefused, Unreachable, OutcomeUnknown.
    """
    permit.require(action, now=now)
    if fingerprint(public_key) != action.fingerprint:
        differences = (f"key: confirmed {action.fingerprint}, now {fingerprint(public_key)}",)
        raise FactsChanged(f"the SSH key was not registered, {differences[0]}", differences=differences, fix=_ASK_AGAIN)
    instance_id = action.instance_id
    if instance_id is not None:
        doing = f"attach bruno's SSH key to instance {instance_id}"
        # The text of the key, never a path: the package uploads whatever string it is given.
        body = vast.once("attach", doing, lambda sdk: sdk.attach_ssh(instance_id, public_key))
    elif any(same_key(public_key, known) for known in vast.ssh_keys()):
        return
    else:
        doing = "register bruno's SSH key"
        body = vast.once("ssh", doing, lambda sdk: sdk.create_ssh_key(public_key))
    error = soft_failure(body, doing=doing)
    if error is not None:
        raise error


def _offer(vast: Vast, action: CreateInstance) -> Offer:
    """The offer as it is now, priced for the confirmed disk."""
    query = OfferQuery(
        gpu_names=(), gpu_count=action.gpu_count, disk_gb=action.disk_gb, offer_id=action.offer_id, limit=1
    )
    offers = vast.offers(query)
    if not offers:
        text = (
            f"offer {action.offer_id} is no longer there, or has no room for {action.disk_gb:g} GB; nothing was rented"
        )
        raise OfferGone(text, fix="Ask again for today's offers")
    return offers[0]


def _same_offer(offer: Offer, action: CreateInstance) -> None:
    differences = []
    if offer.dph_total > action.max_dph + _PRICE_SLACK:
        differences.append(f"price: confirmed up to ${action.max_dph:.4f}/h, now ${offer.dph_total:.4f}/h")
    if offer.gpu != action.gpu:
        differences.append(f"GPU: confirmed {action.gpu}, now {shown_words(offer.gpu)}")
    if offer.machine_id != action.machine_id:
        differences.append(f"machine: confirmed {action.machine_id}, now {offer.machine_id}")
    _unchanged(differences, f"offer {action.offer_id} was not rented")


def _contract(vast: Vast, body: Mapping[str, Any], action: CreateInstance) -> int:
    """The new instance's id from a successful reply; looked up by label when the reply lacks it."""
    identity = body.get("new_contract")
    if isinstance(identity, int) and not isinstance(identity, bool):
        return identity
    return _find_rented(
        vast, action, NoAnswer(f"the provider rented offer {action.offer_id} without saying as which instance")
    )


def _find_rented(vast: Vast, action: CreateInstance, error: BrunoError) -> int:
    """After a failed create: did it leave an instance all the same? The label tells.

    A definite no needs one look (a refused bid is known to leave a stopped instance); a lost reply is worth a few, since the
    list may lag behind.
    """
    unsure = isinstance(error, NoAnswer)
    unseen = ""
    for delay in LOOK_AGAIN_AFTER if unsure else LOOK_AGAIN_AFTER[:1]:
        if delay:
            vast.sleep(delay)
        try:
            found = vast.find_by_label(action.label)
        except Unreachable as problem:
            unseen = f"; {problem.message}"
            continue
        unseen = ""
        if found is not None:
            return _usable(found, action, error)
    if not unsure and not unseen:
        raise error
    raise OutcomeUnknown(
        f"{error.message}; whether it was rented is unknown (label {action.label} is not in the list yet{unseen})",
        fix="Look again in a minute: bruno will find it by its label and rents nothing until then",
        label=action.label,
    ) from error


def _usable(found: Instance, action: CreateInstance, error: BrunoError | None = None) -> int:
    """The id of an instance found by label, unless it is the stopped remains of a failed rental."""
    if error is None or found.state not in {State.STOPPED, State.STOPPING}:
        return found.id
    per_day = found.stopped_per_day
    cost = "an unknown amount" if per_day is None else f"${per_day:.2f}"
    raise RentedButStopped(
        f"{error.message}, and left instance {found.id} ({action.label}) behind, stopped; its disk costs {cost} per day",
        instance_id=found.id,
        fix=f"Destroy instance {found.id}, then take another offer",
    ) from error


def _present(vast: Vast, target: Target) -> Instance:
    shown = vast.instance(target.instance_id)
    if shown is None:
        raise InstanceGone(f"instance {target.instance_id} ({target.label}) no longer exists at the provider")
    return shown


def _differences(shown: Instance, target: Target, *, port: bool = True) -> list[str]:
    """What the provider shows otherwise than the person confirmed."""
    pairs: list[tuple[str, object, object]] = [
        ("id", target.instance_id, shown.id),
        ("label", target.label, shown.label),
    ]
    if port:
        pairs.append(("SSH port", target.ssh_port, shown.ssh_port))
    return [f"{name}: confirmed {_value(was)}, now {_value(now)}" for name, was, now in pairs if was != now]


def _unchanged(differences: list[str], consequence: str) -> None:
    if differences:
        text = f"what was confirmed has changed ({'; '.join(differences)}); {consequence}"
        raise FactsChanged(text, differences=tuple(differences), fix=_ASK_AGAIN)


def _change(
    vast: Vast,
    instance_id: int,
    doing: str,
    call: Callable[[Any], Any],
    *,
    happened: Callable[[Instance | None], bool],
    kind: str = "change",
) -> None:
    """Send once; when the reply is lost, read the instance back and let it say whether it happened."""
    try:
        error = soft_failure(vast.once(kind, doing, call), doing=doing)
    except BrunoError as raised:
        error = raised
    if error is None:
        return
    if not isinstance(error, NoAnswer) or not error.sent:
        raise error
    try:
        seen = vast.instance(instance_id)
    except Unreachable as unread:
        raise _unknown(error, instance_id) from unread
    if not happened(seen):
        raise _unknown(error, instance_id) from error


def _unknown(error: BrunoError, instance_id: int) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{error.message}; whether it happened is unknown",
        fix=f"Look at instance {instance_id} again before anything else",
        instance_id=instance_id,
    )


def _value(value: object) -> str:
    return "unknown" if value is None else str(shown_words(str(value)))
