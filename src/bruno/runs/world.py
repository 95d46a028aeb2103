"""The world a run lives in: records, provider, settings, folders, time. Handed down, so that tests can hand down another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.fleet.vast import Vast
    from bruno.records import Records
    from bruno.settings.console import Settings
    from bruno.settings.paths import Paths

Clock = Callable[[], datetime]
Sleep = Callable[[float], None]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class World:
    """Shared by `operator` and `runs`. Frozen: one session, one world."""

    records: Records
    vast: Vast
    settings: Settings
    paths: Paths
    clock: Clock = utc_now
    sleep: Sleep = time.sleep
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Environment for the engine's process on the machine (such as HF_TOKEN). Never recorded, never shown."""
