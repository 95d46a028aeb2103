"""Polling the provider until something is so: an instance runs and shows an SSH endpoint, or is surely stopped.

An instance is never judged by its age, only by its status: "loading" means wait, up to a limit that the caller names. A poll
without an answer counts as nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event

from bruno.errors import Unreachable
from bruno.fleet.errors import Cancelled, InstanceGone, NotReady, OutcomeUnknown
from bruno.fleet.models import Instance, State
from bruno.fleet.replies import shown_words
from bruno.fleet.vast import Vast

APPEARS_WITHIN = timedelta(seconds=60)
"""A rental that was confirmed may show only after a moment, and is known at times never to show at all."""
SCHEDULED_WITHIN = timedelta(seconds=60)
"""A start passes through "scheduling"; one that stays there has lost its GPU to somebody else."""

OnPoll = Callable[[Instance | None], None]
"""Called with what each poll showed; None when it had no answer, or the instance is not shown."""


def wait_running(
    vast: Vast,
    instance_id: int,
    *,
    minutes: float,
    poll_seconds: float = 5,
    on_poll: OnPoll | None = None,
    cancel: Event | None = None,
) -> Instance:
    """Wait until the instance runs and shows an SSH endpoint.

    Args:
        minutes: how long loading may take. Then it is given up, not stopped: that is the person's to decide.
        cancel: set by the face to stop waiting. The instance goes on.

    Raises:
        NotReady: it failed, was stopped, lost its machine, waits for a GPU that is taken, or took too long. The message says
            what the provider shows and what it costs meanwhile.
        InstanceGone: it never appeared, or vanished.
        Cancelled, WrongKey.
    """
    started = vast.clock()
    deadline = started + timedelta(minutes=minutes)
    latest: Instance | None = None
    silence = ""
    while True:
        shown, silence = _look(vast, instance_id, on_poll)
        waited = vast.clock() - started
        if shown is not None:
            latest = shown
            if shown.state is State.RUNNING and shown.endpoints:
                return shown
            _hopeful(shown, waited)
        elif not silence and (latest is not None or waited >= APPEARS_WITHIN):
            raise _vanished(instance_id, seen=latest is not None)
        if vast.clock() >= deadline:
            raise _too_long(instance_id, latest, silence, minutes)
        if cancel is not None and cancel.is_set():
            raise Cancelled(
                f"waiting for instance {instance_id} was called off; it goes on loading and costs {_cost(latest)}"
            )
        vast.sleep(poll_seconds)


def wait_stopped(
    vast: Vast,
    instance_id: int,
    *,
    minutes: float = 5,
    poll_seconds: float = 3,
    on_poll: OnPoll | None = None,
) -> Instance | None:
    """Wait until wanted and current state are stopped and nothing can be billed for its GPU; None when the instance is gone.

    Raises:
        OutcomeUnknown: not seen stopped in time, so it may still be billed.
        WrongKey.
    """
    deadline = vast.clock() + timedelta(minutes=minutes)
    while True:
        shown, silence = _look(vast, instance_id, on_poll)
        if not silence and (shown is None or shown.stopped):
            return shown
        said = _status(shown) if shown is not None else silence
        if vast.clock() >= deadline:
            raise OutcomeUnknown(
                f"instance {instance_id} was not seen stopped within {minutes:g} minutes ({said}); it may still be billed",
                fix=f"Look at instance {instance_id} again, and stop it again if it runs",
                instance_id=instance_id,
            )
        vast.sleep(poll_seconds)


def _look(vast: Vast, instance_id: int, on_poll: OnPoll | None) -> tuple[Instance | None, str]:
    """One poll: the instance (None: the provider says there is none), or why nothing is known."""
    shown, silence = None, ""
    try:
        shown = vast.instance(instance_id)
    except Unreachable as error:
        silence = str(error)
    if on_poll is not None:
        on_poll(shown)
    return shown, silence


def _hopeful(shown: Instance, waited: timedelta) -> None:
    """Raise NotReady when waiting cannot help."""
    reasons = {
        State.FAILED: "its container failed",
        State.LOST: "the provider has lost contact with its machine",
        State.STOPPED: "it is stopped (by somebody, outbid, or for want of credit)",
        State.STOPPING: "it is being stopped",
        State.SCHEDULING: "its GPU is taken, so it waits for one and may never run",
    }
    reason = reasons.get(shown.state)
    if shown.state is State.SCHEDULING and waited < SCHEDULED_WITHIN:
        return
    if reason is not None:
        fix = (
            "Stop it to cancel the wait"
            if shown.state is State.SCHEDULING
            else f"Look at instance {shown.id}; destroy it or take another"
        )
        raise NotReady(
            f"instance {shown.id} will not run: {reason} ({_status(shown)}); it costs {_cost(shown)}", fix=fix
        )


def _vanished(instance_id: int, *, seen: bool) -> InstanceGone:
    if seen:
        return InstanceGone(f"instance {instance_id} vanished while it was starting", fix="Rent another offer")
    text = f"the provider reported instance {instance_id} as rented, but shows none after {APPEARS_WITHIN.seconds} s"
    return InstanceGone(text, fix="Rent another offer")


def _too_long(instance_id: int, latest: Instance | None, silence: str, minutes: float) -> NotReady:
    last = _status(latest) if latest is not None else "never shown"
    said = f"{last}; {silence}" if silence else last
    return NotReady(
        f"instance {instance_id} was not ready after {minutes:g} minutes ({said}); it goes on and costs {_cost(latest)}",
        fix="Wait longer with `bruno resume`, or destroy it and take another offer",
    )


def _status(shown: Instance) -> str:
    message = shown_words(shown.status_msg or "")
    status = shown.actual_status or "no status yet"
    return f"{shown_words(status)}: {message}" if message else str(shown_words(status))


def _cost(shown: Instance | None) -> str:
    """The hourly price in words: while loading only the disk is billed, but a plan should fear the whole."""
    if shown is None or shown.dph_total is None:
        return "an unknown amount"
    if shown.stopped:
        return (
            "an unknown amount"
            if shown.stopped_per_day is None
            else f"${shown.stopped_per_day:.2f} per day for its disk"
        )
    return f"up to ${shown.dph_total:.3f}/h"
