from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bruno.records import Records, Run


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records(tmp_path: Path, clock: Clock) -> Iterator[Records]:
    opened = Records(tmp_path / "state" / "bruno.sqlite3", clock)
    yield opened
    opened.close()


@pytest.fixture
def a_run(clock: Clock) -> Callable[..., Run]:
    def make(run_id: str = "demo-1", **changes: object) -> Run:
        fields = {
            "run_id": run_id,
            "label": f"bruno-{run_id}",
            "title": "start demo",
            "model": "demo",
            "playbook": "abliterate",
            "plan_id": "p" * 64,
            "plan_json": "{}",
            "created_at": clock(),
            "updated_at": clock(),
        }
        return Run(**{**fields, **changes})

    return make
