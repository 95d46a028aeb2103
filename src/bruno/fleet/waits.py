"""Polling the provider until something is so: running with an SSH port, or surely stopped (skeleton)."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from bruno.fleet.models import Instance
from bruno.fleet.vast import Vast


def wait_running(
    vast: Vast,
    instance_id: int,
    *,
    minutes: float,
    poll_seconds: float = 5,
    on_poll: Callable[[Instance | None], None] | None = None,
    cancel: Event | None = None,
) -> Instance:
    """Wait until the instance runs and shows an SSH endpoint.

    Raises: NotReady (failed, stopped from outside, scheduling, or loading longer than `minutes`: the message says the status and what
        it costs), InstanceGone (it never appeared, or vanished), Cancelled. A poll without answer is not counted as anything.
    """
    raise NotImplementedError


def wait_stopped(
    vast: Vast,
    instance_id: int,
    *,
    minutes: float = 5,
    poll_seconds: float = 3,
    on_poll: Callable[[Instance | None], None] | None = None,
) -> Instance | None:
    """Wait until wanted and current state are stopped and nothing burns; None when the instance is gone.

    Raises: OutcomeUnknown (not seen stopped in time: it may still be billed).
    """
    raise NotImplementedError
