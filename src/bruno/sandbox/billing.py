"""Time and money: moves every instance to a given moment and charges for it to the second. Pure.

The account is stepped from event to event (a stage that ends, the credit that runs out), so one long jump of the clock
costs and does exactly what the same time in small steps does.
"""

from __future__ import annotations

from bruno.sandbox import machine
from bruno.sandbox.state import Charge, Instance, Stage, State

DAY = 86_400.0


def hourly(instance: Instance) -> tuple[float, float]:
    """What an instance costs now, in $/h: GPU and disk."""
    gpu = instance.gpu_hour if machine.bills_gpu(instance) else 0.0
    disk = instance.disk_hour if machine.bills_disk(instance) else 0.0
    return gpu, disk


def advance(state: State, now: float) -> list[tuple[int, Stage]]:
    """Bring the account from `state.billed_until` to `now`.

    Args:
        state: changed in place: stages, credit, charges, `billed_until`.
        now: sandbox time. A moment in the past changes nothing: the account waits until the clock has caught up.

    Returns:
        Every stage that was entered, in order, as (instance id, stage).
    """
    moves: list[tuple[int, Stage]] = []
    while True:
        upcoming = [
            (moment, i.id) for i in state.instances.values() if (moment := machine.due(i, state.pace)) is not None
        ]
        moment, who = min(upcoming, default=(now, None))
        broke = _credit_ends(state)
        if broke is not None and broke <= min(moment, now):
            _charge_until(state, broke)
            state.credit = 0.0
            moves += stop_all(state, broke)
        elif who is not None and moment <= now:
            _charge_until(state, moment)
            moves.append((who, machine.step(state.instances[who], max(moment, state.instances[who].since))))
        else:
            _charge_until(state, now)
            return moves


def stop_all(state: State, at: float) -> list[tuple[int, Stage]]:
    """What the provider does when the credit is gone. Returns the stages entered."""
    moves = []
    for instance in state.instances.values():
        before = instance.stage
        machine.force_stop(instance, at)
        if instance.stage is not before:
            moves.append((instance.id, instance.stage))
    return moves


def _credit_ends(state: State) -> float | None:
    """When the credit reaches zero at the present rate; None if it does not or nothing is left to be stopped."""
    if state.credit <= 0 or all(i.stage in {Stage.HALTED, Stage.EXITED} for i in state.instances.values()):
        return None
    rate = sum(sum(hourly(i)) for i in state.instances.values())
    return state.billed_until + state.credit / rate * 3600 if rate > 0 else None


def _charge_until(state: State, moment: float) -> None:
    """Charge every instance from `billed_until` to `moment`, a row per instance and UTC day."""
    while state.billed_until < moment:
        start = state.billed_until
        end = min(moment, (start // DAY + 1) * DAY)
        for instance in state.instances.values():
            _charge(state, instance, start, end)
        state.billed_until = end


def _charge(state: State, instance: Instance, start: float, end: float) -> None:
    gpu, disk = hourly(instance)
    if gpu == 0 and disk == 0:
        return
    day = start // DAY * DAY
    row = next((c for c in reversed(state.charges) if c.instance == instance.id and c.day == day), None)
    if row is None:
        name = f"{instance.offer.num_gpus}x {instance.offer.gpu_name}"
        row = Charge(instance=instance.id, day=day, start=start, end=end, label=instance.label, gpu_name=name)
        state.charges.append(row)
    hours = (end - start) / 3600
    row.end, row.label = end, instance.label
    row.gpu_amount += gpu * hours
    row.disk_amount += disk * hours
    row.gpu_seconds += end - start if gpu else 0.0
    row.disk_seconds += end - start if disk else 0.0
    state.credit -= (gpu + disk) * hours
