"""What is known, right now, about a run on its machine: asked before an instance is stopped, and when a person reports trouble.

Each item names its source. A source that cannot answer gives None, which is unknown and never counts as fine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.fleet.host import Host
    from bruno.records import Run
    from bruno.runs.progress import Progress
    from bruno.runs.world import World


@dataclass(frozen=True)
class Item:
    """One fact as one source tells it."""

    name: str
    """A fact name of the guard: process_running, model_saved, trial, trials, disk_free_gb, label_file, ..."""
    value: str | int | float | bool | None
    source: str
    """process, log, events, disk, host, provider, records."""
    note: str = ""
    """Why it is unknown, or what it rests on."""


@dataclass(frozen=True)
class Evidence:
    """The facts gathered at one moment, and where two sources disagree."""

    run_id: str
    at: datetime
    items: tuple[Item, ...]
    progress: Progress | None = None
    disagreements: tuple[str, ...] = field(default=())

    def value(self, name: str) -> str | int | float | bool | None:
        """The value of `name` when all sources that know it agree; None when unknown or disputed."""
        values = {item.value for item in self.items if item.name == name and item.value is not None}
        return values.pop() if len(values) == 1 else None

    @property
    def kills(self) -> str:
        """What dies with the instance, in one phrase: "the engine at trial 57 of 200; no model saved"."""
        raise NotImplementedError


def gather(world: World, run: Run, host: Host | None) -> Evidence:
    """Ask the machine (job state, log, disk, label file) and the records. `host` None: it could not be reached.

    Never raises for a silent machine: what could not be read is an item with value None and the reason in its note.
    """
    raise NotImplementedError
