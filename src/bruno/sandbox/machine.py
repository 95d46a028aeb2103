"""The life of one instance: stages, what each looks like from outside, and what moves it on. Pure.

    create ─> PROVISIONING ─> CREATED ─> LOADING ─> BOOTING ─> RUNNING
    actual:   null            created    loading    running    running (SSH answers)
    stop  ─> STOPPING ─> HALTED (cur=stopped, processes gone) ─> EXITED        start ─> LOADING      reboot ─> REBOOTING
    BROKEN: container could not be made.  DIED: container ended by itself.  LOST: host offline.  None moves on by itself.

Every function takes the moment it happens at and changes the instance it is given; nothing here reads a clock.
"""

from __future__ import annotations

from bruno.sandbox.state import Instance, Pace, Stage

_FOLLOWS = {
    Stage.PROVISIONING: Stage.CREATED,
    Stage.CREATED: Stage.LOADING,
    Stage.LOADING: Stage.BOOTING,
    Stage.BOOTING: Stage.RUNNING,
    Stage.REBOOTING: Stage.BOOTING,
    Stage.STOPPING: Stage.HALTED,
    Stage.HALTED: Stage.EXITED,
}
_ACTUAL = {
    Stage.CREATED: "created",
    Stage.LOADING: "loading",
    Stage.BOOTING: "running",
    Stage.RUNNING: "running",
    Stage.EXITED: "exited",
    Stage.REBOOTING: "rebooting",
    Stage.BROKEN: "created",
    Stage.DIED: "exited",
}
CONTAINER_UP = {Stage.BOOTING, Stage.RUNNING, Stage.STOPPING}
HAS_PORTS = {Stage.BOOTING, Stage.RUNNING, Stage.STOPPING}
OCI_FAILURE = (
    "Error response from daemon: failed to create task for container: failed to create shim task: "
    "OCI runtime create failed: runc create failed: unable to start container process: error during container init"
)


def enter(instance: Instance, stage: Stage, at: float) -> None:
    """Put an instance into a stage and set the fields the provider shows for it."""
    instance.stage, instance.since = stage, at
    instance.actual = _ACTUAL.get(stage, instance.actual)
    if stage in {Stage.PROVISIONING, Stage.LOADING, Stage.REBOOTING}:
        instance.intended = instance.cur = instance.next_state = "running"
    if stage is Stage.PROVISIONING:
        instance.actual = None
    elif stage is Stage.BOOTING:
        instance.generation += 1
        instance.status_msg = f"success, running {instance.image.replace('/', '_')}/ssh"
    elif stage is Stage.STOPPING:
        instance.intended = instance.next_state = "stopped"
    elif stage is Stage.HALTED:
        instance.intended = instance.cur = instance.next_state = "stopped"
    elif stage is Stage.BROKEN:
        instance.status_msg = OCI_FAILURE
    elif stage is Stage.DIED:
        instance.status_msg = "container exited"
    instance.events.append((at, stage.value))


def due(instance: Instance, pace: Pace) -> float | None:
    """When the instance leaves its stage by itself; None if it does not."""
    if instance.stage not in _FOLLOWS:
        return None
    return instance.since + duration(instance, pace)


def duration(instance: Instance, pace: Pace) -> float:
    """How long its present stage lasts, in seconds."""
    own = instance.pace.get(instance.stage)
    return own if own is not None else float(getattr(pace, instance.stage.value))


def step(instance: Instance, at: float) -> Stage:
    """Move an instance that is due to its next stage and return that."""
    stage = _FOLLOWS[instance.stage]
    enter(instance, stage, at)
    return stage


def progress(instance: Instance, pace: Pace, now: float) -> str | None:
    """The provider's `status_msg` at `now`: a pull's progress while loading, else the stage's last word."""
    if instance.stage is not Stage.LOADING:
        return instance.status_msg
    share = min(max((now - instance.since) / max(duration(instance, pace), 1e-9), 0.0), 1.0)
    return f"{instance.image}: Pulling fs layers {int(share * 14)}/14, {share:.0%} done"


def bills_gpu(instance: Instance) -> bool:
    """Whether GPU time is being charged: while a container runs, also while it is still being stopped."""
    return instance.stage in {Stage.BOOTING, Stage.RUNNING} or (
        instance.stage is Stage.STOPPING and instance.actual == "running"
    )


def bills_disk(instance: Instance) -> bool:
    """Whether storage is being charged: always, but for a host that is offline."""
    return instance.stage is not Stage.LOST


def request_stop(instance: Instance, at: float) -> None:
    """The customer's stop. Harmless when it is stopped or stopping; cancels a start that waits for a free GPU."""
    if instance.cur == "stopped" or instance.stage in {Stage.STOPPING, Stage.HALTED, Stage.EXITED}:
        instance.intended = instance.next_state = "stopped"
        return
    if instance.stage is Stage.DIED:
        enter(instance, Stage.HALTED, at)
        return
    if instance.stage is Stage.LOST:  # nobody is there to hear it; the wish stands
        instance.intended = instance.next_state = "stopped"
        return
    enter(instance, Stage.STOPPING, at)


def request_start(instance: Instance, at: float, *, gpu_free: bool = True) -> None:
    """The customer's start. With the GPU taken the instance stays stopped and waits (`next_state` running)."""
    if instance.stage is Stage.STOPPING:  # not yet stopped: the stop is taken back
        enter(instance, Stage.RUNNING if instance.actual == "running" else Stage.LOADING, at)
        instance.intended = instance.cur = instance.next_state = "running"
        return
    if instance.stage not in {Stage.HALTED, Stage.EXITED, Stage.DIED}:
        return
    instance.intended = instance.next_state = "running"
    if gpu_free:
        enter(instance, Stage.LOADING, at)


def request_reboot(instance: Instance, at: float) -> bool:
    """Restart the container in place. False, and nothing done, unless it is running."""
    if instance.stage not in {Stage.BOOTING, Stage.RUNNING}:
        return False
    enter(instance, Stage.REBOOTING, at)
    return True


def force_stop(instance: Instance, at: float) -> None:
    """Stopped by the provider (outbid, no credit, contract over). From outside it looks like the customer's own stop."""
    if instance.stage not in {Stage.HALTED, Stage.EXITED}:
        enter(instance, Stage.HALTED, at)
    instance.intended = instance.next_state = "stopped"


def lose_host(instance: Instance, at: float, status: str = "offline") -> None:
    """The host stops answering: `offline` or `unknown`. Nothing is billed until it is back."""
    enter(instance, Stage.LOST, at)
    instance.actual = status


def regain_host(instance: Instance, at: float) -> None:
    """A lost host answers again; what was asked for in between is done now."""
    if instance.stage is Stage.LOST:
        started = Stage.RUNNING if instance.generation else Stage.LOADING
        enter(instance, Stage.HALTED if instance.intended == "stopped" else started, at)
