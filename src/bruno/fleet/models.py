"""What the provider shows, read leniently into frozen data: offers, instances, endpoints, the account.

Nothing is invented: a field that is absent, null or unreadable is None, and None means unknown. Money in US dollars, disk in
GB as the provider counts it, memory in GB (10^9), times as aware UTC datetimes. Texts (`status_msg`, labels) are
as the provider sent them; a face passes them through `bruno.guard.sanitise` before a screen. Pure: no network, no disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

HOURS_PER_MONTH = 720.0
"""The provider's month: `dph_total = dph_base + storage_cost * GB / 720`."""
_BURNING = frozenset({"running", "loading", "rebooting", "frozen"})
"""`actual_status` values in which the GPU may be billed."""


class State(StrEnum):
    """What an instance is doing, drawn from the provider's four status fields. Careful third parties' mapping."""

    PROVISIONING = "provisioning"
    """Being made, image loading, or rebooting: wait. Never judged by its age."""
    RUNNING = "running"
    SCHEDULING = "scheduling"
    """Started again, but its GPU is taken: may never run. Stopping it cancels."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    """By the person, outbid, out of credit or at the contract's end: these look the same; only bruno's records tell."""
    FAILED = "failed"
    """The container could not be made, or ended by itself."""
    LOST = "lost"
    """The provider has no contact with the machine."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Endpoint:
    """Where SSH answers. `kind` is `direct` (the machine's own address) or `proxy` (the provider's relay)."""

    kind: str
    host: str
    port: int
    user: str = "root"


@dataclass(frozen=True)
class Offer:
    """One offer, priced for the disk that was asked for."""

    id: int
    machine_id: int | None
    gpu: str
    gpu_count: int
    disk_gb: float
    """The disk this row is priced for, as asked."""
    dph_total: float
    """$/h with that disk. The greater of the provider's total and the sum of its parts, so that it is never a surprise."""
    dph_base: float | None = None
    storage_cost: float | None = None
    """$/GB/month of 720 h; also billed while stopped."""
    disk_available_gb: float | None = None
    gpu_memory_gb: float | None = None
    """Of one GPU."""
    reliability: float | None = None
    """0 to 1."""
    inet_down_mbps: float | None = None
    inet_up_mbps: float | None = None
    inet_down_cost: float | None = None
    """$/GB received by the instance."""
    inet_up_cost: float | None = None
    """$/GB sent by the instance."""
    ends_at: datetime | None = None
    """End of the longest contract on offer: the instance cannot run after it."""
    verified: bool | None = None
    datacenter: bool | None = None
    geolocation: str | None = None
    direct_ports: int | None = None
    cuda_max: float | None = None
    driver: str | None = None
    rentable: bool | None = None

    @property
    def stopped_per_day(self) -> float | None:
        """What the disk costs per day while the instance is stopped."""
        return None if self.storage_cost is None else self.storage_cost * self.disk_gb / HOURS_PER_MONTH * 24

    @classmethod
    def read(cls, row: Mapping[str, Any], *, disk_gb: float) -> Offer | None:
        """An offer from the provider's row, or None when it lacks what renting rests on (id, GPU, count, price)."""
        identity, gpu, count = _integer(row.get("id")), _text(row.get("gpu_name")), _integer(row.get("num_gpus"))
        total = _full_price(row, disk_gb)
        if identity is None or gpu is None or count is None or total is None:
            return None
        memory = _number(row.get("gpu_ram"))
        return cls(
            id=identity,
            machine_id=_integer(row.get("machine_id")),
            gpu=gpu,
            gpu_count=count,
            disk_gb=disk_gb,
            dph_total=total,
            dph_base=_number(row.get("dph_base")),
            storage_cost=_number(row.get("storage_cost")),
            disk_available_gb=_number(row.get("disk_space")),
            gpu_memory_gb=None if memory is None else memory / 1000,
            reliability=_number(row.get("reliability2", row.get("reliability"))),
            inet_down_mbps=_number(row.get("inet_down")),
            inet_up_mbps=_number(row.get("inet_up")),
            inet_down_cost=_number(row.get("inet_down_cost")),
            inet_up_cost=_number(row.get("inet_up_cost")),
            ends_at=_moment(row.get("end_date")),
            verified=None if row.get("verification") is None else row.get("verification") == "verified",
            datacenter=None if row.get("hosting_type") is None else row.get("hosting_type") == 1,
            geolocation=_text(row.get("geolocation")),
            direct_ports=_integer(row.get("direct_port_count")),
            cuda_max=_number(row.get("cuda_max_good")),
            driver=_text(row.get("driver_version")),
            rentable=row.get("rentable") if isinstance(row.get("rentable"), bool) else None,
        )


@dataclass(frozen=True)
class Instance:
    """One instance as the provider shows it at one moment."""

    id: int
    label: str | None = None
    actual_status: str | None = None
    intended_status: str | None = None
    cur_state: str | None = None
    next_state: str | None = None
    status_msg: str | None = None
    gpu: str | None = None
    gpu_count: int | None = None
    machine_id: int | None = None
    image: str | None = None
    dph_total: float | None = None
    dph_base: float | None = None
    storage_cost: float | None = None
    disk_gb: float | None = None
    disk_used_gb: float | None = None
    """None when the provider shows -1, which it does until it knows."""
    started_at: datetime | None = None
    ends_at: datetime | None = None
    """End of the contract. Remaining time is this minus now: the provider's `duration` means two different things."""
    inet_down_cost: float | None = None
    inet_up_cost: float | None = None
    direct: Endpoint | None = None
    proxy: Endpoint | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The provider's own row, for showing evidence."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where to try SSH, best first: direct is faster, the proxy exists on every machine.

        Computed from the row: the package's `ssh-url` keeps an address for ever, fails on null ports, and its two halves
        disagree on which endpoint comes first.
        """
        return tuple(endpoint for endpoint in (self.direct, self.proxy) if endpoint is not None)

    @property
    def ssh_port(self) -> int | None:
        """The port of the first endpoint, the one that is shown, confirmed and compared. None: the provider shows none."""
        return self.endpoints[0].port if self.endpoints else None

    @property
    def state(self) -> State:
        """One word for the four status fields."""
        return _state(self)

    @property
    def stopped(self) -> bool:
        """Whether the GPU is surely no longer billed: wanted and current state stopped, and nothing alive on it."""
        settled = self.intended_status == self.cur_state == "stopped"
        return settled and self.actual_status not in _BURNING

    @property
    def stopped_per_day(self) -> float | None:
        """What its disk costs per day while it is stopped; None when the provider does not say."""
        if self.storage_cost is None or self.disk_gb is None:
            return None
        return self.storage_cost * self.disk_gb / HOURS_PER_MONTH * 24

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Instance | None:
        """An instance from the provider's row, or None when it has no id: then the list it is in cannot be trusted."""
        identity = _integer(row.get("id"))
        if identity is None:
            return None
        used = _number(row.get("disk_usage"))
        return cls(
            id=identity,
            label=_text(row.get("label")),
            actual_status=_text(row.get("actual_status")),
            intended_status=_text(row.get("intended_status")),
            cur_state=_text(row.get("cur_state")),
            next_state=_text(row.get("next_state")),
            status_msg=_text(row.get("status_msg")),
            gpu=_text(row.get("gpu_name")),
            gpu_count=_integer(row.get("num_gpus")),
            machine_id=_integer(row.get("machine_id")),
            image=_text(row.get("image_uuid")),
            dph_total=_number(row.get("dph_total")),
            dph_base=_number(row.get("dph_base")),
            storage_cost=_number(row.get("storage_cost")),
            disk_gb=_number(row.get("disk_space")),
            disk_used_gb=None if used is None or used < 0 else used,
            started_at=_moment(row.get("start_date")),
            ends_at=_moment(row.get("end_date")),
            inet_down_cost=_number(row.get("inet_down_cost")),
            inet_up_cost=_number(row.get("inet_up_cost")),
            direct=_direct(row),
            proxy=_proxy(row),
            raw=dict(row),
        )


@dataclass(frozen=True)
class Listing:
    """All instances of the account at one moment, or the fact that this is unknown.

    `known` False means the list could not be read whole: `instances` then holds what was seen, for showing alone, and no
    decision that spends or deletes may rest on it (a provider that answered nothing once made another tool rent in a loop).
    """

    known: bool
    instances: tuple[Instance, ...]
    read_at: datetime
    problem: str = ""

    def count(self) -> int | None:
        """How many instances there are; None when unknown."""
        return len(self.instances) if self.known else None

    def live(self) -> int | None:
        """How many of them may be billed for a GPU; None when unknown."""
        return sum(not instance.stopped for instance in self.instances) if self.known else None

    def with_label(self, label: str) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.label == label)


@dataclass(frozen=True)
class Account:
    """Who pays. `credit` in dollars; None is unknown."""

    credit: float | None
    balance: float | None = None
    email: str | None = None
    read_at: datetime | None = None

    @classmethod
    def read(cls, body: Mapping[str, Any], *, read_at: datetime) -> Account:
        """The account from the provider's object."""
        return cls(_number(body.get("credit")), _number(body.get("balance")), _text(body.get("email")), read_at)


@dataclass(frozen=True)
class OfferQuery:
    """What is looked for. `disk_gb` is also what every price is computed for."""

    gpu_names: tuple[str, ...]
    """The provider's names ("H200", "A100 SXM4"); underscores are read as blanks. Empty: any GPU."""
    disk_gb: float
    gpu_count: int = 1
    max_dph: float | None = None
    """Ceiling on the full price, $/h with disk."""
    min_gpu_memory_gb: float | None = None
    min_reliability: float | None = None
    min_download_mbps: float | None = None
    min_hours: float | None = None
    """The contract must be able to last so long."""
    limit: int = 20
    offer_id: int | None = None
    """Only this offer: how the price is read again at the moment of renting."""


def _state(instance: Instance) -> State:
    actual, intended = instance.actual_status, instance.intended_status
    message = (instance.status_msg or "").lower()
    if actual in {"offline", "unknown"}:
        return State.LOST
    if intended == "stopped":
        return State.STOPPED if instance.stopped else State.STOPPING
    if intended != "running":
        return State.UNKNOWN
    if actual == "created" and ("oci runtime" in message or "error response from daemon" in message):
        return State.FAILED  # such a container never starts, however long one waits
    if instance.cur_state == "stopped" and instance.next_state == "running":
        return State.SCHEDULING
    if actual in {None, "created", "loading", "rebooting"}:
        return State.PROVISIONING
    if actual in {"exited", "stopped"}:
        return State.FAILED
    return State.RUNNING if actual in {"running", "frozen"} else State.UNKNOWN


def _full_price(row: Mapping[str, Any], disk_gb: float) -> float | None:
    """$/h with `disk_gb` of disk. A provider that ignored the wanted disk would show the price for its default 5 GB."""
    total, base, storage = (_number(row.get(name)) for name in ("dph_total", "dph_base", "storage_cost"))
    if total is None:
        return None  # a sum of parts that the provider does not stand by is not a price
    parts = None if base is None or storage is None else base + storage * disk_gb / HOURS_PER_MONTH
    return total if parts is None else max(total, parts)


def _direct(row: Mapping[str, Any]) -> Endpoint | None:
    """The mapped port of 22/tcp. `ports` is null until the container runs, and again after it stops."""
    host = (_text(row.get("public_ipaddr")) or "").strip()
    ports = row.get("ports")
    bindings = ports.get("22/tcp") if isinstance(ports, Mapping) else None
    first = bindings[0] if isinstance(bindings, list) and bindings and isinstance(bindings[0], Mapping) else {}
    port = _port(first.get("HostPort"))
    return Endpoint("direct", host, port) if host and port else None


def _proxy(row: Mapping[str, Any]) -> Endpoint | None:
    host, port = (_text(row.get("ssh_host")) or "").strip(), _port(row.get("ssh_port"))
    if not host or not port:
        return None
    # A jupyter launch gives port+1 to SSH; bruno launches with ssh, but an instance made elsewhere may be shown here.
    jupyter = "jupyter" in (_text(row.get("image_runtype")) or "")
    return Endpoint("proxy", host, port + 1 if jupyter else port)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A finite number, also when it comes as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _port(value: Any) -> int | None:
    port = _integer(value)
    return port if port is not None and 0 < port < 65536 else None


def _moment(value: Any) -> datetime | None:
    seconds = _number(value)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None
