"""The market: a catalogue of offers read from `offers.toml`, and Vast.ai's search over it. Reads that one file.

Prices follow the provider's identity `dph_total = dph_base + storage_cost * GB / 720` (dollars per hour; storage is
priced per GB and month of 720 hours), so an offer only has a price once it is known how much disk is wanted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

DEFAULT_CATALOGUE = Path(__file__).with_name("offers.toml")
HOURS_PER_MONTH = 720
CONTRACT_SECONDS = 30 * 24 * 3600.0
DEFAULT_LIMIT = 64  # rows returned when the request names no limit
_NOT_FILTERS = {"order", "type", "limit", "allocated_storage", "disable_bundling", "sort_option", "select_cols"}


class QueryError(ValueError):
    """A search that the provider would answer with 400 `invalid_args`."""


class Gpu(BaseModel):
    """What one GPU of a kind is: memory in MB, benchmark score, TFLOPS, GB/s, watts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_ram: int
    dlperf: float
    compute_cap: int
    total_flops: float
    gpu_mem_bw: float
    gpu_max_power: float


class Offer(BaseModel):
    """One line of the market. Prices in $/h for all GPUs, storage in $/GB/month, disk in GB, bandwidth in Mb/s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    machine_id: int
    host_id: int
    gpu_name: str
    num_gpus: int
    dph_base: float
    min_bid: float
    storage_cost: float
    disk_space: float
    reliability: float
    geolocation: str
    inet_up: float
    inet_down: float
    inet_up_cost: float
    inet_down_cost: float
    direct_port_count: int
    datacenter: bool
    verified: bool = True
    gpu: Gpu

    def disk_per_hour(self, disk: float) -> float:
        """What `disk` GB of storage cost here, in dollars per hour."""
        return self.storage_cost * disk / HOURS_PER_MONTH


def load_catalogue(path: Path = DEFAULT_CATALOGUE) -> dict[int, Offer]:
    """Read a catalogue. Raises `pydantic.ValidationError`, `KeyError` or `tomllib.TOMLDecodeError` on a bad file."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    offers = (Offer(**row, gpu=data["gpus"][row["gpu_name"]]) for row in data["offers"])
    return {offer.id: offer for offer in offers}


def offer_row(offer: Offer, *, storage: float, bid: bool, rented: bool, now: float) -> dict[str, Any]:
    """One offer as the provider's search returns it, priced for `storage` GB at time `now`."""
    gpu, count = offer.gpu, offer.num_gpus
    gpu_hour = offer.min_bid if bid else offer.dph_base
    disk_hour = offer.disk_per_hour(storage)
    total = gpu_hour + disk_hour
    dlperf = gpu.dlperf * count
    return {
        **offer.model_dump(exclude={"gpu", "verified", "datacenter"}),
        "ask_contract_id": offer.id,
        "bundle_id": offer.machine_id * 10 + count,
        "gpu_ram": gpu.gpu_ram,
        "gpu_total_ram": gpu.gpu_ram * count,
        "gpu_frac": min(1.0, count / 8),
        "gpu_mem_bw": gpu.gpu_mem_bw,
        "gpu_max_power": gpu.gpu_max_power,
        "gpu_arch": "nvidia",
        "compute_cap": gpu.compute_cap,
        "total_flops": gpu.total_flops * count,
        "dph_base": gpu_hour,
        "dph_total": total,
        "storage_total_cost": disk_hour,
        "search": _hourly(gpu_hour, disk_hour),
        "instance": _hourly(gpu_hour, disk_hour),
        "internet_up_cost_per_tb": offer.inet_up_cost * 1024,
        "internet_down_cost_per_tb": offer.inet_down_cost * 1024,
        "disk_bw": 2600.0,
        "reliability2": offer.reliability,
        "duration": CONTRACT_SECONDS,
        "end_date": now + CONTRACT_SECONDS,
        "start_date": now,
        "verification": "verified" if offer.verified else "unverified",
        "verified": offer.verified,
        "external": False,
        "hosting_type": int(offer.datacenter),
        "datacenter": offer.datacenter,
        "public_ipaddr": "127.0.0.1",
        "static_ip": offer.datacenter,
        "rentable": not rented,
        "rented": rented,
        "is_bid": bid,
        "vms_enabled": False,
        "cuda_max_good": 12.8,
        "driver_version": "570.148.08",
        "cpu_arch": "amd64",
        "cpu_ram": 128_000 * count,
        "cpu_cores": 32 * count,
        "cpu_cores_effective": 24.0 * count,
        "cpu_ghz": 3.4,
        "has_avx": 1,
        "pci_gen": 5.0,
        "pcie_bw": 48.6,
        "dlperf": dlperf,
        "dlperf_per_dphtotal": dlperf / total,
        "flops_per_dphtotal": gpu.total_flops * count / total,
        "score": dlperf / total * offer.reliability,
        "avail_vol_ask_id": None,
        "avail_vol_size": None,
        "avail_vol_dph": None,
    }


def _hourly(gpu: float, disk: float) -> dict[str, float]:
    return {
        "gpuCostPerHour": gpu,
        "diskHour": disk,
        "totalHour": gpu + disk,
        "discountTotalHour": 0.0,
        "discountedTotalPerHour": gpu + disk,
    }


def search(offers: Iterable[Offer], body: Mapping[str, Any], *, rented: set[int], now: float) -> list[dict[str, Any]]:
    """Answer a search as `POST /bundles/` does.

    Args:
        offers: the catalogue.
        body: the request: filters such as `{"gpu_ram": {"gte": "80000"}}` (values may be numbers written as strings),
            and `order`, `type`, `limit`, `allocated_storage` (GB; 5 when absent, as at the provider).
        rented: ids of offers that are taken.
        now: the time contracts would start at.

    Raises:
        QueryError: an unknown field, operator or type, or a value that cannot be compared with the field.
    """
    kind = str(body.get("type", "on-demand"))
    if kind not in {"on-demand", "ask", "bid", "interruptible", "reserved"}:
        raise QueryError(f"unknown offer type {kind!r}")
    storage = _number(body.get("allocated_storage", 5.0), "allocated_storage")
    bid = kind in {"bid", "interruptible"}
    rows = [offer_row(o, storage=storage, bid=bid, rented=o.id in rented, now=now) for o in offers]
    filters = {field: tests for field, tests in body.items() if field not in _NOT_FILTERS}
    rows = [row for row in rows if all(_passes(row, field, tests) for field, tests in filters.items())]
    for field, direction in reversed(body.get("order") or []):
        if rows and field not in rows[0]:
            raise QueryError(f"cannot order by unknown field {field!r}")
        rows.sort(key=lambda row: row[field], reverse=direction == "desc")
    return rows[: int(_number(body.get("limit", DEFAULT_LIMIT), "limit"))]


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda have, want: have == want,
    "neq": lambda have, want: have != want,
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
    "in": lambda have, want: have in want,
    "notin": lambda have, want: have not in want,
}


def _passes(row: Mapping[str, Any], field: str, tests: Any) -> bool:
    if field not in row:
        raise QueryError(f"unknown search field {field!r}")
    if not isinstance(tests, Mapping):
        raise QueryError(f"filter for {field!r} must be an object such as {{'eq': 1}}")
    for name, wanted in tests.items():
        if name not in _OPERATORS:
            raise QueryError(f"unknown operator {name!r} for {field!r}")
        have = row[field]
        if name in {"in", "notin"}:
            if not isinstance(wanted, list):
                raise QueryError(f"operator {name!r} for {field!r} needs a list")
            wanted = [_like(have, value, field) for value in wanted]  # noqa: PLW2901
        else:
            wanted = _like(have, wanted, field)  # noqa: PLW2901
        if field == "geolocation":
            have = _place(have, wanted)
        if have is None or not _OPERATORS[name](have, wanted):
            return False
    return True


def _place(have: str, wanted: Any) -> str:
    """A place matches by its country code or in full: "Iceland, IS" is both itself and "IS"."""
    code = have.rsplit(", ", 1)[-1]
    return code if wanted == code or (isinstance(wanted, list) and code in wanted) else have


def _like(have: Any, wanted: Any, field: str) -> Any:
    """`wanted` in the type of `have`: the client sends most numbers as strings."""
    if isinstance(have, bool):
        return str(wanted).lower() in {"true", "1", "1.0"}
    if isinstance(have, int | float):
        return _number(wanted, field)
    return wanted


def _number(value: Any, field: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise QueryError(f"{field!r} needs a number, not {value!r}") from None
