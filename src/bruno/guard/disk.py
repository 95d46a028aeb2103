"""How much disk a model needs, with the arithmetic that a person can check. Pure.

The rule: twice the model's bytes (the original and the reshaped model side by side) plus 20 GB for the system, the engine
and logs, and never below the floor of the model's class. GB are decimal (10^9 bytes), as providers bill them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bruno.errors import InputError
from bruno.guard.rules import DiskFloor, DiskRules, shipped

GB = 1e9


@dataclass(frozen=True)
class DiskNeed:
    """Disk in GB: `gb` is what a run is given, `minimum_gb` what it is denied below."""

    gb: float
    minimum_gb: float
    recommended_gb: float
    arithmetic: tuple[str, ...]


def disk_needed(model_bytes: float, model_class: str = "", *, rules: DiskRules | None = None) -> DiskNeed:
    """max(copies x model bytes + extra, floor of the class), each line of the sum spelled out.

    Args:
        model_bytes: bytes of the model's weight files, above 0.
        model_class: a class of guardrails/disk.toml ("32B"); "" lets the bytes decide. A stated class never lowers the
            floor that the bytes call for.

    Raises:
        InputError: the size is not a positive number, or no such class exists.
    """
    rules = rules or shipped().disk
    if not (math.isfinite(model_bytes) and model_bytes > 0):
        raise InputError(f"a model of {model_bytes} bytes has no disk need", fix="Give the size of its weight files")
    by_bytes = max((floor for floor in rules.floors if model_bytes >= floor.from_gb * GB), key=lambda f: f.from_gb)
    floor = _strictest(_named(model_class, rules), by_bytes)
    model_gb = model_bytes / GB
    summed = math.ceil(rules.copies * model_gb + rules.extra_gb)
    minimum = max(summed, floor.minimum_gb)
    recommended = max(minimum, floor.recommended_gb)
    arithmetic = (
        f"{rules.copies:g} x {model_gb:.1f} GB of weights + {rules.extra_gb:g} GB for the system and logs = {summed} GB",
        f"floor for the {floor.name} class: {floor.minimum_gb:g} GB"
        + (f" ({floor.recommended_gb:g} GB recommended)" if floor.recommended_gb > floor.minimum_gb else ""),
        f"needed: {minimum:g} GB",
    )
    return DiskNeed(gb=recommended, minimum_gb=minimum, recommended_gb=recommended, arithmetic=arithmetic)


def _named(name: str, rules: DiskRules) -> DiskFloor | None:
    if not name:
        return None
    for floor in rules.floors:
        if floor.name.casefold() == name.casefold():
            return floor
    known = ", ".join(floor.name for floor in rules.floors)
    raise InputError(f"no disk floor is known for the model class {name!r}", fix=f"Known classes: {known}")


def _strictest(named: DiskFloor | None, by_bytes: DiskFloor) -> DiskFloor:
    if named is None:
        return by_bytes
    return max(named, by_bytes, key=lambda floor: floor.minimum_gb)
