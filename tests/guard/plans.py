"""Plans and facts that the guard's tests share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bruno.guard.actions import Action, CreateInstance, DestroyInstance, StartInstance, StopInstance, Target
from bruno.guard.judge import Context
from bruno.guard.plan import Cost, Fact, Plan, Step

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
TARGET = Target(instance_id=1001, label="bruno-demo-7f3a", ssh_port=40022)

STOP_FACTS: dict[str, object] = {
    "instance_id": 1001,
    "label": "bruno-demo-7f3a",
    "ssh_port": 40022,
    "provider_ssh_port": 40022,
    "label_file": "C.1001",
    "status": "running",
    "process_running": False,
    "model_saved": True,
}
RENT_FACTS: dict[str, object] = {"model_bytes": 65.5e9, "model_class": "32B", "dph_total": 3.2}


def create(**changes: object) -> CreateInstance:
    fields: dict[str, object] = {
        "offer_id": 7, "machine_id": 9, "gpu": "H200", "gpu_count": 1, "image": "pytorch/pytorch", "disk_gb": 200.0,
        "label": "bruno-qwen32b-1a2b", "max_dph": 3.2,
    }  # fmt: skip
    return CreateInstance.model_validate(fields | changes)


def stop(**changes: object) -> StopInstance:
    return StopInstance.model_validate({"target": TARGET} | changes)


def destroy(**changes: object) -> DestroyInstance:
    return DestroyInstance.model_validate({"target": TARGET} | changes)


def start(**changes: object) -> StartInstance:
    return StartInstance.model_validate({"target": TARGET, "max_dph": 3.2} | changes)


def plan(
    *actions: Action, facts: dict[str, object] | None = None, cost: Cost | None = None, minutes: float = 10
) -> Plan:
    return Plan(
        title="a plan",
        steps=tuple(Step(action=action) for action in actions),
        facts=tuple(Fact.model_validate({"name": n, "value": v, "source": "test"}) for n, v in (facts or {}).items()),
        cost=cost or Cost(per_hour=3.2, hours=5, total=16),
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=minutes),
    )


def context(**changes: object) -> Context:
    return Context(**({"now": NOW, "live_instances": 0, "credit": 100.0} | changes))  # type: ignore[arg-type]
