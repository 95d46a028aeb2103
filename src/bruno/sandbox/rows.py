"""Instances and charges as the provider shows them: the JSON rows of `show`, the list and the cost report. Pure."""

from __future__ import annotations

from typing import Any

from bruno.sandbox import machine
from bruno.sandbox.state import Charge, Instance, Pace

LOOPBACK = "127.0.0.1"


def instance_row(instance: Instance, *, pace: Pace, now: float) -> dict[str, Any]:
    """One instance with every field the real client and its known users read. See `reference/vast.md` 1.5."""
    offer = instance.offer
    gpu, disk = instance.gpu_hour, instance.disk_hour
    hourly = {"gpuCostPerHour": gpu, "diskHour": disk, "totalHour": gpu + disk}
    running = instance.stage in machine.CONTAINER_UP and instance.actual == "running"
    return {
        "id": instance.id,
        "label": instance.label,
        "machine_id": offer.machine_id,
        "host_id": offer.host_id,
        "bundle_id": offer.machine_id * 10 + offer.num_gpus,
        "ask_contract_id": offer.id,
        "template_id": None,
        "template_name": None,
        "actual_status": instance.actual,
        "intended_status": instance.intended,
        "cur_state": instance.cur,
        "next_state": instance.next_state,
        "status_msg": machine.progress(instance, pace, now),
        "image_uuid": instance.image,
        "image_runtype": instance.runtype,
        "image_args": [],
        "extra_env": [list(pair) for pair in instance.extra_env],
        "onstart": instance.onstart,
        "jupyter_token": f"{instance.id:064x}",
        **_addresses(instance),
        "gpu_name": offer.gpu_name,
        "num_gpus": offer.num_gpus,
        "gpu_ram": offer.gpu.gpu_ram,
        "gpu_totalram": offer.gpu.gpu_ram * offer.num_gpus,
        "gpu_util": None,
        "gpu_temp": None,
        "gpu_frac": min(1.0, offer.num_gpus / 8),
        "cpu_cores_effective": 24.0 * offer.num_gpus,
        "cpu_ram": 128_000 * offer.num_gpus,
        "cpu_util": 0.0,
        "mem_limit": None,
        "mem_usage": None,
        "disk_space": instance.disk,
        "disk_usage": -1,
        "disk_util": -1,
        "volume_info": [],
        "inet_up": offer.inet_up,
        "inet_down": offer.inet_down,
        "internet_up_cost_per_tb": offer.inet_up_cost * 1024,
        "internet_down_cost_per_tb": offer.inet_down_cost * 1024,
        "is_bid": instance.bid is not None,
        "min_bid": offer.min_bid,
        "dph_base": gpu,
        "dph_total": gpu + disk,
        "storage_cost": offer.storage_cost,
        "storage_total_cost": disk,
        "search": {**hourly, "discountTotalHour": 0.0, "discountedTotalPerHour": gpu + disk},
        "instance": hourly,
        "credit_balance": None,
        "credit_discount": None,
        "start_date": instance.created_at,
        "end_date": instance.end_date,
        "duration": instance.end_date - now,
        "uptime_mins": (now - instance.since) / 60 if running else None,
        "client_run_time": 1.1,
        "reliability2": offer.reliability,
        "verification": "verified" if offer.verified else "unverified",
        "geolocation": offer.geolocation,
        "time_remaining": _remaining(instance.end_date - now),
        "driver_version": "570.148.08",
        "cuda_max_good": 12.8,
    }


def _addresses(instance: Instance) -> dict[str, Any]:
    """Where it can be reached. Every address is loopback; `ports` is null unless the container is up."""
    ports = None
    if instance.stage in machine.HAS_PORTS and instance.actual == "running":
        ports = {}
        if instance.direct and instance.direct_port is not None:
            ports["22/tcp"] = [{"HostIp": "0.0.0.0", "HostPort": str(instance.direct_port)}]  # noqa: S104 as docker says
    return {
        "ssh_host": LOOPBACK,
        "ssh_idx": "0",
        "ssh_port": instance.proxy_port,
        "machine_dir_ssh_port": instance.direct_port,
        "public_ipaddr": LOOPBACK,
        "local_ipaddrs": f"{LOOPBACK} \n",
        "static_ip": instance.offer.datacenter,
        "ports": ports,
        "direct_port_count": instance.offer.direct_port_count,
        "direct_port_start": -1,
        "direct_port_end": -1,
    }


def _remaining(seconds: float) -> str:
    hours = max(0, int(seconds // 3600))
    return f"{hours // 720} Mon {hours % 720 // 24} D {hours % 24} Hr"


def charge_row(charge: Charge) -> dict[str, Any]:
    """One row of the cost report: an instance's cost on one day, with GPU and disk apart."""
    items = [
        {
            "type": "gpu",
            "amount": charge.gpu_amount,
            "description": f"{charge.gpu_name}, {charge.gpu_seconds / 3600:.4f} hours",
        },
        {
            "type": "disk",
            "amount": charge.disk_amount,
            "description": f"storage, {charge.disk_seconds / 3600:.4f} hours",
        },
    ]
    return {
        "start": charge.start,
        "end": charge.end,
        "type": "instance",
        "source": f"instance-{charge.instance}",
        "amount": charge.gpu_amount + charge.disk_amount,
        "description": f"Instance {charge.instance}",
        "metadata": {"label": charge.label},
        "items": [item for item in items if item["amount"]],
    }
