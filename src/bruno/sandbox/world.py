"""The provider's side of every request: what create, start, stop, destroy and the rest do to the account. Pure.

A `World` is the state, the market and the fault book at one moment. It answers with plain values or raises `Refusal`,
which carries the HTTP answer the provider gives; `api.py` only translates. Sockets, folders and processes follow from
`drain`, the list of stages entered since the last look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bruno.sandbox import billing, machine
from bruno.sandbox.faults import FaultBook, FaultKind
from bruno.sandbox.offers import CONTRACT_SECONDS, Offer
from bruno.sandbox.state import AttachedKey, Instance, SshKey, Stage, State

MINIMUM_DISK = 8.0
MAXIMUM_LABEL = 1024
FOREVER = 86_400.0


class Refusal(Exception):
    """A request the provider turns down: the status and JSON body of its answer."""

    def __init__(self, status: int, error: str, msg: str, **more: Any) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"success": False, "error": error, "msg": msg, **more}


def no_such_ask(offer_id: int, status: int = 404) -> Refusal:
    """The offer is gone. The provider is known to say so with 400, 404 and (for `cancel_unavail`) 410."""
    if status == 410:
        text = f"error 410/3907: no_such_ask Instance type {offer_id} is no longer available."
        return Refusal(410, "no_such_ask", text, ask_id=offer_id)
    text = f"error 404/3603: no_such_ask Instance type by id {offer_id} is not available."
    return Refusal(status, "invalid_args", text, ask_id=offer_id)


class World:
    """The account, its instances and the market.

    Args:
        state: changed in place.
        catalogue: the offers, by id.
    """

    def __init__(self, state: State, catalogue: Mapping[int, Offer]) -> None:
        self.state = state
        self.catalogue = catalogue
        self.faults = FaultBook(state.faults)
        self._moves: list[tuple[int, Stage]] = []
        self._destroyed: list[int] = []
        if state.billed_until == 0:
            state.billed_until = self.now()

    def now(self) -> float:
        """Sandbox time in seconds since the epoch."""
        return self.state.clock.now()

    def advance(self) -> None:
        """Bring every instance and the account up to the present."""
        self._moves += billing.advance(self.state, self.now())

    def note(self, moves: list[tuple[int, Stage]]) -> None:
        """Remember stages somebody else put instances into, for `drain`."""
        self._moves += moves

    def drain(self) -> tuple[list[tuple[int, Stage]], list[int]]:
        """Stages entered and instances destroyed since the last call, in order."""
        moves, destroyed = self._moves, self._destroyed
        self._moves, self._destroyed = [], []
        return moves, destroyed

    def rented(self) -> set[int]:
        """Offers that are taken by an instance of this account (a stopped one has given its GPU back)."""
        free = {Stage.EXITED, Stage.HALTED}
        return {i.offer.id for i in self.state.instances.values() if i.stage not in free}

    def next_event(self) -> float | None:
        """When the next instance changes by itself, in sandbox time; None if none does."""
        dues = (machine.due(i, self.state.pace) for i in self.state.instances.values())
        return min((moment for moment in dues if moment is not None), default=None)

    def instance(self, instance_id: int) -> Instance:
        """The instance of that id. Raises `Refusal` 404 if there is none."""
        try:
            return self.state.instances[instance_id]
        except KeyError:
            raise Refusal(404, "no_such_instance", f"Instance {instance_id} not found.") from None

    def create(self, offer_id: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """Rent an offer: `PUT /asks/{id}/`.

        Raises:
            Refusal: offer gone, no credit, or arguments the provider rejects.
        """
        if fault := self.faults.take(FaultKind.NO_SUCH_ASK):
            raise no_such_ask(offer_id, int(fault.number(404)))
        self._need_credit()
        offer = self.catalogue.get(offer_id)
        if offer is None:
            raise no_such_ask(offer_id)
        bid, disk = _arguments(body, offer)
        taken = offer_id in self.rented()
        if taken and body.get("cancel_unavail"):
            raise no_such_ask(offer_id, 410)
        new_id = self._new_id()
        answer = {"success": True, "new_contract": new_id, "instance_api_key": f"{new_id:064x}"}
        if self.faults.take(FaultKind.NEVER_MATERIALISES):
            return answer
        instance = self._add(new_id, offer, body, bid=bid, disk=disk)
        outbid = bid is not None and bid < offer.min_bid
        if self.faults.take(FaultKind.REFUSED_BUT_CREATED) or outbid:
            self._force_stop(instance)
            return {**answer, "success": False, "error": "invalid_price", "msg": "Bid is below the current price."}
        if taken:  # scheduled: it waits, stopped, for a GPU that may never be free
            self._force_stop(instance)
            instance.intended = instance.next_state = "running"
        return answer

    def seed(self, offer_id: int, *, label: str | None, disk: float, running: bool) -> Instance:
        """Put an instance there that no create call made, as if somebody else had. Raises `Refusal`."""
        offer = self.catalogue.get(offer_id)
        if offer is None:
            raise no_such_ask(offer_id)
        body = {"label": label, "image": "somebody/elses:image", "runtype": "ssh_direc ssh_proxy"}
        instance = self._add(self._new_id(), offer, body, bid=None, disk=disk)
        instance.foreign = True
        if running:
            self._enter(instance, Stage.BOOTING)
            self._enter(instance, Stage.RUNNING)
        else:
            self._force_stop(instance)
            self._enter(instance, Stage.EXITED)
        return instance

    def set_power(self, instance_id: int, wanted: str) -> None:
        """The customer's start or stop. Raises `Refusal`: no such instance, unknown state, no credit, contract over."""
        instance, now = self.instance(instance_id), self.now()
        if wanted == "stopped":
            self._moved(instance, lambda: machine.request_stop(instance, now))
        elif wanted == "running":
            if self.state.credit <= 0:
                raise Refusal(400, "missing_billing", "Insufficient credit to start the instance.")
            if now >= instance.end_date:
                raise Refusal(400, "invalid_args", f"Contract of instance {instance_id} has ended.")
            self._start(instance, now)
        else:
            raise Refusal(400, "invalid_args", f"unknown state {wanted!r}")

    def _start(self, instance: Instance, now: float) -> None:
        others = {i.offer.id for i in self.state.instances.values() if i is not instance and i.cur == "running"}
        taken = self.faults.take(FaultKind.GPU_TAKEN, instance=instance.id) or instance.offer.id in others
        if self.faults.take(FaultKind.PORT_CHANGE, instance=instance.id):
            instance.direct_port = None
        self._moved(instance, lambda: machine.request_start(instance, now, gpu_free=not taken))

    def relabel(self, instance_id: int, label: str) -> None:
        """Name an instance. Raises `Refusal`."""
        _check_label(label)
        self.instance(instance_id).label = label

    def reboot(self, instance_id: int) -> None:
        """Restart the container in place. Raises `Refusal` if there is none running."""
        instance = self.instance(instance_id)
        if not machine.request_reboot(instance, self.now()):
            raise Refusal(400, "invalid_args", f"Instance {instance_id} is not running.")
        self._moves.append((instance.id, instance.stage))

    def change_bid(self, instance_id: int, price: float | None) -> None:
        """Set an interruptible instance's price; None lets the provider choose one that wins. Raises `Refusal`."""
        instance = self.instance(instance_id)
        if instance.bid is None:
            raise Refusal(400, "invalid_args", f"Instance {instance_id} is not interruptible.")
        instance.bid = instance.offer.min_bid if price is None else price
        if instance.bid < instance.offer.min_bid:
            self._force_stop(instance)

    def destroy(self, instance_id: int) -> None:
        """Delete an instance and everything on it. Raises `Refusal` 404 the second time."""
        self.instance(instance_id)
        del self.state.instances[instance_id]
        self._destroyed.append(instance_id)

    def add_key(self, public_key: str) -> SshKey:
        """Add a key to the account; it reaches instances created from now on. Raises `Refusal`."""
        key = SshKey(id=self.state.next_key_id, public_key=_public_key(public_key), created_at=self.now())
        self.state.next_key_id += 1
        self.state.keys.append(key)
        return key

    def attach_key(self, instance_id: int, public_key: str) -> None:
        """Put a key on one instance. Raises `Refusal`."""
        instance, line = self.instance(instance_id), _public_key(public_key)
        if any(key.public_key == line for key in instance.keys):
            return
        lag = self.faults.take(FaultKind.KEY_LAG, instance=instance_id)
        effective = self.now() + (lag.number(60) if lag else 0)
        instance.keys.append(AttachedKey(id=self.state.next_key_id, public_key=line, effective_at=effective))
        self.state.next_key_id += 1

    def detach_key(self, instance_id: int, key_id: int) -> None:
        """Take a key from one instance. Raises `Refusal` if it is not there."""
        instance = self.instance(instance_id)
        left = [key for key in instance.keys if key.id != key_id]
        if len(left) == len(instance.keys):
            raise Refusal(404, "no_such_key", f"Key {key_id} is not on instance {instance_id}.")
        instance.keys = left

    def _need_credit(self) -> None:
        fault = self.faults.take(FaultKind.NO_CREDIT)
        if fault is None and self.state.credit > 0:
            return
        word = str(fault.value) if fault and fault.value else "insufficient_credit"
        raise Refusal(400, word, "Insufficient credits: your account lacks credit for this rental.")

    def _new_id(self) -> int:
        new_id = self.state.next_instance_id
        self.state.next_instance_id += 1
        return new_id

    def _add(self, new_id: int, offer: Offer, body: Mapping[str, Any], *, bid: float | None, disk: float) -> Instance:
        now = self.now()
        lag = self.faults.take(FaultKind.KEY_LAG)
        effective = now + (lag.number(60) if lag else 0)
        instance = Instance(
            id=new_id,
            offer=offer,
            since=now,
            created_at=now,
            end_date=now + CONTRACT_SECONDS,
            label=body.get("label"),
            image=body.get("image") or "pytorch/pytorch",
            disk=disk,
            bid=bid,
            runtype=body.get("runtype") or "ssh_proxy",
            onstart=body.get("onstart"),
            extra_env=[(str(k), str(v)) for k, v in (body.get("env") or {}).items()],
            keys=[AttachedKey(id=k.id, public_key=k.public_key, effective_at=effective) for k in self.state.keys],
        )
        if slow := self.faults.take(FaultKind.SLOW_LOADING):
            instance.pace[Stage.LOADING] = slow.number(FOREVER)
        if late := self.faults.take(FaultKind.LATE_SSH):
            instance.pace[Stage.BOOTING] = late.number(60)
        self.state.instances[new_id] = instance
        self._enter(instance, Stage.BROKEN if self.faults.take(FaultKind.OCI_FAILURE) else Stage.PROVISIONING)
        return instance

    def _enter(self, instance: Instance, stage: Stage) -> None:
        self._moved(instance, lambda: machine.enter(instance, stage, self.now()))

    def _force_stop(self, instance: Instance) -> None:
        self._moved(instance, lambda: machine.force_stop(instance, self.now()))

    def _moved(self, instance: Instance, act: Any) -> None:
        """Do `act` and note the stage it led to, if it led anywhere."""
        before = (instance.stage, len(instance.events))
        act()
        if (instance.stage, len(instance.events)) != before:
            self._moves.append((instance.id, instance.stage))


def _arguments(body: Mapping[str, Any], offer: Offer) -> tuple[float | None, float]:
    """Bid ($/h or None) and disk (GB) of a create call, checked as the provider does."""
    _check_label(body.get("label") or "")
    try:
        bid = None if body.get("price") is None else float(body["price"])
        disk = float(body.get("disk") or 10.0)
    except (TypeError, ValueError):
        raise Refusal(400, "invalid_args", "price and disk must be numbers.") from None
    if bid is not None and not 0.001 <= bid <= 128:
        raise Refusal(400, "invalid_price", "price must be between 0.001 and 128.")
    if not MINIMUM_DISK <= disk <= offer.disk_space:
        raise Refusal(400, "invalid_args", f"disk must be between {MINIMUM_DISK:g} and {offer.disk_space:g} GB.")
    if not body.get("image") and not body.get("template_hash_id"):
        raise Refusal(400, "invalid_args", "image is required.")
    return bid, disk


def _check_label(label: str) -> None:
    if len(label) > MAXIMUM_LABEL:
        raise Refusal(400, "label_too_long", f"Label is longer than {MAXIMUM_LABEL} characters.")


def _public_key(text: str) -> str:
    """One OpenSSH public key line without surrounding blanks. Raises `Refusal` for anything else."""
    line = text.strip() if isinstance(text, str) else ""
    if "\n" in line or not line.startswith(("ssh-", "ecdsa-", "sk-")) or len(line.split()) < 2:
        raise Refusal(400, "invalid_args", "ssh_key is not an OpenSSH public key.")
    return line
