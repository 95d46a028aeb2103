"""Views drawn from records, from the run's own log at home and from the provider's list. Reads; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from bruno.fleet.models import Instance, Listing, Offer
from bruno.guard.sanitise import safe_line
from bruno.operator.views import (
    InstancesView,
    InstanceView,
    OfferView,
    RunState,
    RunView,
    TrialView,
)
from bruno.records import InstanceRecord, Records, Run, RunStep
from bruno.records.tables import RunState as Recorded
from bruno.records.tables import StepState
from bruno.runs.home import read_home
from bruno.runs.money import money
from bruno.runs.progress import Progress, TrialResult
from bruno.runs.world import World
from bruno.settings.paths import Paths

_STATE_OF_STEP = {
    "rent": RunState.RENTING,
    "wait_ready": RunState.STARTING,
    "identify": RunState.STARTING,
    "check_disk": RunState.STARTING,
    "install": RunState.INSTALLING,
    "smoke": RunState.INSTALLING,
    "launch": RunState.INSTALLING,
    "follow": RunState.SEARCHING,
    "verify": RunState.SAVING,
    "fetch": RunState.COPYING,
}
"""What a run is doing while a step of this kind is the one under way."""
LOG_LINES = 200


def run_view(run: Run, records: Records, paths: Paths, now: datetime) -> RunView:
    """The run as its records and its log at home tell it now. Needs no provider, and so no key."""
    reading = read_home(paths.runs / run.run_id)
    progress = reading.progress
    record = records.instance(run.instance_id) if run.instance_id else None
    costs = money(record, now)
    steps = records.steps(run.run_id)
    return RunView(
        run_id=run.run_id,
        name=run.run_id,
        model=run.model,
        gpu=_gpu(record),
        state=_state(run, steps, progress, record),
        step=_step(steps),
        instance_id=run.instance_id,
        label=run.label,
        trial=progress.trial if progress.trial is not None else progress.completed or None,
        trials=progress.trials or run.trials,
        initial=(progress.initial_refusals.refused, progress.initial_refusals.prompts)
        if progress.initial_refusals
        else None,
        last=_trial(progress.history[-1]) if progress.history else None,
        best=_trial(progress.best),
        history=tuple(view for trial in progress.history if (view := _trial(trial))),
        stopped_trials=progress.stopped_trials,
        failed_trials=progress.failed_trials,
        elapsed_seconds=_elapsed(run, now),
        remaining_seconds=progress.remaining_seconds,
        spent=costs.spent,
        per_hour=costs.per_hour,
        model_saved=run.remote_model or progress.model_saved,
        local_model=run.local_model,
        problem=str(safe_line(run.problem or progress.failed or "", 600)),
        discrepancies=(*_concerns(run, records), *_discrepancies(run, records)),
        read_at=reading.read_at,
        log_tail=tuple(str(safe_line(line, 400)) for line in reading.tail[-LOG_LINES:]),
    )


def _concerns(run: Run, records: Records) -> Iterator[str]:
    """What the person reported and nobody resolved yet; a hold first."""
    for row in sorted(records.concerns(run.run_id), key=lambda row: row.held_at is None):
        said = " / ".join(dict.fromkeys(row.words))
        held = "ON HOLD: " if row.held_at is not None else ""
        yield str(
            safe_line(f'{held}you reported "{said}" (concern {row.concern_id}); when you know: "resolved: ..."', 400)
        )


def _discrepancies(run: Run, records: Records) -> Iterator[str]:
    for row in records.discrepancies(run.run_id):
        line = f"{row.subject}: the {row.source} says {row.said}, the {row.other_source} says {row.against}"
        yield str(safe_line(line, 400))


def instances_view(listing: Listing, world: World, credit: float | None) -> InstancesView:
    """The provider's list with bruno's own runs marked."""
    ours = {record.instance_id: record for record in world.records.instances()}
    now = world.clock()
    return InstancesView(
        known=listing.known,
        problem=str(safe_line(listing.problem)),
        rows=tuple(_instance(instance, ours.get(instance.id), now) for instance in listing.instances),
        read_at=listing.read_at,
        credit=credit,
    )


def offer_view(offer: Offer) -> OfferView:
    return OfferView(
        offer_id=offer.id,
        gpu=str(safe_line(offer.gpu)),
        gpu_count=offer.gpu_count,
        gpu_memory_gb=offer.gpu_memory_gb,
        per_hour=offer.dph_total,
        disk_gb=offer.disk_gb,
        reliability=offer.reliability,
        location=str(safe_line(offer.geolocation or "unknown")),
        download_mbps=offer.inet_down_mbps,
    )


def _instance(instance: Instance, record: InstanceRecord | None, now: datetime) -> InstanceView:
    endpoint = instance.endpoints[0] if instance.endpoints else None
    return InstanceView(
        instance_id=instance.id,
        label=str(safe_line(instance.label or "")),
        status=instance.state.value,
        intended=str(safe_line(instance.intended_status or "unknown")),
        gpu=str(safe_line(instance.gpu or "unknown")),
        gpu_count=instance.gpu_count or 1,
        gpu_utilisation=_number(instance.raw.get("gpu_util")),
        disk_gb=instance.disk_gb,
        disk_used_gb=instance.disk_used_gb,
        per_hour=instance.dph_total,
        stopped_per_day=instance.stopped_per_day,
        ssh=str(safe_line(f"{endpoint.host}:{endpoint.port}")) if endpoint else "",
        age_seconds=(now - instance.started_at).total_seconds() if instance.started_at else None,
        run_id=record.run_id if record and record.label == instance.label else None,
    )


def _state(run: Run, steps: list[RunStep], progress: Progress, record: InstanceRecord | None) -> RunState:
    if run.state == Recorded.FINISHED:
        return RunState.DONE
    if run.state == Recorded.ENDED:
        return RunState.STOPPED
    if run.state == Recorded.FAILED:
        return RunState.FAILED
    if record and (record.gone_at or record.stopped_at) and record.running_since is None:
        return RunState.STOPPED
    current = next((step for step in steps if step.state != StepState.DONE), None)
    if current is None:
        return RunState.DONE
    if run.state == Recorded.CONFIRMED and current.state == StepState.PENDING:
        return RunState.PLANNED
    if current.name == "follow":
        return RunState.SAVING if progress.model_saved or progress.selected else RunState.SEARCHING
    return _STATE_OF_STEP.get(current.name, RunState.UNKNOWN)


def _step(steps: list[RunStep]) -> str:
    current = next((step for step in steps if step.state != StepState.DONE), None)
    return current.name.replace("_", " ") if current else ""


def _trial(trial: TrialResult | None) -> TrialView | None:
    if trial is None:
        return None
    return TrialView(number=trial.trial, refusals=trial.refusals.refused, prompts=trial.refusals.prompts, kl=trial.kl)


def _gpu(record: InstanceRecord | None) -> str:
    if record is None or not record.gpu:
        return ""
    return f"{record.gpu_count} x {record.gpu}" if record.gpu_count > 1 else record.gpu


def _elapsed(run: Run, now: datetime) -> float:
    return ((run.finished_at or now) - run.created_at).total_seconds()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
