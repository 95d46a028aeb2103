"""Faults that strike at once: what each does to the account and to the machines behind it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bruno.sandbox import billing, machine, processes
from bruno.sandbox.faults import AT_ONCE, FOR_THE_ACCOUNT, Fault, FaultKind
from bruno.sandbox.state import Instance, Stage
from bruno.sandbox.world import FOREVER, Refusal

if TYPE_CHECKING:
    from bruno.sandbox.server import Sandbox


async def strike(sandbox: Sandbox, fault: Fault) -> None:
    """Do what a fault does now, or book it for the request, connection or creation it is meant for.

    Raises:
        Refusal: a fault that needs an instance names none or a wrong one, or its value is no number.
    """
    try:
        if fault.kind in FOR_THE_ACCOUNT:
            await _to_the_account(sandbox, fault)
        elif fault.kind in AT_ONCE or (fault.kind in _RESHAPES and fault.instance is not None):
            await _to_an_instance(sandbox, fault, _named(sandbox, fault))
        else:
            sandbox.world.faults.add(fault)
    except ValueError as error:
        raise Refusal(400, "invalid_args", f"fault {fault.kind}: {error}") from error


_RESHAPES = {FaultKind.SLOW_LOADING, FaultKind.LATE_SSH, FaultKind.OCI_FAILURE}


def _named(sandbox: Sandbox, fault: Fault) -> Instance:
    if fault.instance is None:
        raise ValueError("needs an instance")
    return sandbox.world.instance(fault.instance)


async def _to_the_account(sandbox: Sandbox, fault: Fault) -> None:
    world = sandbox.world
    if fault.kind is FaultKind.CLOCK_JUMP:
        world.state.clock.advance(fault.number(3600))
        return
    world.state.credit = fault.number(0)
    if world.state.credit <= 0:
        world.note(billing.stop_all(world.state, world.now()))


async def _to_an_instance(sandbox: Sandbox, fault: Fault, instance: Instance) -> None:
    now, ssh = sandbox.world.now(), sandbox.ssh_of(instance.id)
    before = len(instance.events)
    match fault.kind:
        case FaultKind.SLOW_LOADING:
            instance.pace[Stage.LOADING] = fault.number(FOREVER)
        case FaultKind.LATE_SSH:
            instance.pace[Stage.BOOTING] = fault.number(60)
        case FaultKind.OCI_FAILURE:
            machine.enter(instance, Stage.BROKEN, now)
        case FaultKind.OUTBID:
            machine.force_stop(instance, now)
        case FaultKind.OFFLINE:
            machine.lose_host(instance, now, str(fault.value or "offline"))
        case FaultKind.ONLINE:
            machine.regain_host(instance, now)
        case FaultKind.CONTAINER_EXIT if instance.stage not in machine.CONTAINER_UP:
            raise ValueError(f"instance {instance.id} has no container running")
        case FaultKind.CONTAINER_EXIT:
            machine.enter(instance, Stage.DIED, now)
        case FaultKind.OUT_OF_MEMORY:
            await asyncio.to_thread(processes.kill_largest, sandbox.folder_of(instance.id))
        case FaultKind.HOST_KEY_CHANGE if ssh is not None:
            ssh.change_host_key()
        case FaultKind.DROP_SSH if ssh is not None:
            ssh.drop()
        case FaultKind.DISK_FULL | FaultKind.DISK_FREED:
            await _set_disk(sandbox, fault, instance)
    if len(instance.events) > before:
        sandbox.world.note([(instance.id, instance.stage)])


async def _set_disk(sandbox: Sandbox, fault: Fault, instance: Instance) -> None:
    """A full disk as far as that goes without privileges: see `processes.limit_file_size` for what it is not."""
    full = fault.kind is FaultKind.DISK_FULL
    instance.file_size_limit = int(fault.number(0)) if full else None
    folder = sandbox.folder_of(instance.id)
    folder.show_full_disk(full)
    await asyncio.to_thread(processes.limit_file_size, folder, instance.file_size_limit)
