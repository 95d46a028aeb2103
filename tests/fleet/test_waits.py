"""Waiting on the emulated provider, by a clock that moves only while somebody waits."""

from __future__ import annotations

from threading import Event

import pytest

from bruno.fleet import acts
from bruno.fleet.errors import Cancelled, InstanceGone, NotReady, OutcomeUnknown, WrongKey
from bruno.fleet.models import Instance, State
from bruno.fleet.waits import wait_running, wait_stopped
from bruno.guard.actions import StartInstance, StopInstance, Target
from tests.fleet.conftest import Cloud, permit_for, rental


def rent(cloud: Cloud) -> int:
    action = rental()
    return acts.create(cloud.vast, action, permit_for(action, now=cloud.now), cloud.now)


def stop(cloud: Cloud, instance: Instance) -> None:
    where = Target(instance_id=instance.id, label=instance.label or "", ssh_port=instance.ssh_port)
    action = StopInstance(target=where)
    acts.stop(cloud.vast, action, permit_for(action, now=cloud.now), cloud.now)


def test_a_rental_is_followed_until_it_runs(cloud: Cloud) -> None:
    seen: list[State | None] = []
    instance = wait_running(
        cloud.vast,
        rent(cloud),
        minutes=20,
        poll_seconds=1,
        on_poll=lambda shown: seen.append(shown.state if shown else None),
    )
    assert instance.state is State.RUNNING
    assert instance.direct is not None
    assert seen[0] is State.PROVISIONING
    assert seen[-1] is State.RUNNING


def test_an_unanswered_poll_counts_as_nothing(cloud: Cloud) -> None:
    identity = rent(cloud)
    cloud.control.order("server_error", times=4, operation="show")
    seen: list[Instance | None] = []
    assert wait_running(cloud.vast, identity, minutes=20, on_poll=seen.append).state is State.RUNNING
    assert seen[0] is None


def test_a_rental_that_never_appears(cloud: Cloud) -> None:
    cloud.control.order("never_materialises")
    with pytest.raises(InstanceGone, match=r"reported instance .* as rented, but shows none after 60 s"):
        wait_running(cloud.vast, rent(cloud), minutes=20)


def test_loading_means_wait_up_to_the_limit(cloud: Cloud) -> None:
    cloud.control.order("slow_loading", value=3600)
    identity = rent(cloud)
    with pytest.raises(NotReady, match=r"not ready after 20 minutes \(loading.*costs up to \$2\.622/h"):
        wait_running(cloud.vast, identity, minutes=20, poll_seconds=60)
    assert wait_running(cloud.vast, identity, minutes=90, poll_seconds=60).state is State.RUNNING  # it was left to load


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("oci_failure", "container failed.*OCI runtime"),
        ("container_exit", "container failed"),
        ("offline", "lost contact"),
        ("outbid", "it is stopped"),
    ],
)
def test_what_cannot_come_up_is_not_waited_for(cloud: Cloud, fault: str, said: str) -> None:
    if fault == "oci_failure":
        cloud.control.order(fault)
        identity = rent(cloud)
    else:
        identity = cloud.running().id
        cloud.control.order(fault, instance=identity)
        cloud.time.sleep(5)
    with pytest.raises(NotReady, match=said):
        wait_running(cloud.vast, identity, minutes=20)


def test_a_start_whose_gpu_is_taken(cloud: Cloud) -> None:
    instance = cloud.vast.instance(cloud.control.seed(20871102, label="bruno-a", running=False))
    assert instance is not None
    cloud.control.order("gpu_taken")
    action = StartInstance(target=Target(instance_id=instance.id, label="bruno-a"), max_dph=9)
    acts.start(cloud.vast, action, permit_for(action, now=cloud.now), cloud.now)
    with pytest.raises(NotReady, match=r"its GPU is taken.*Stop it to cancel the wait"):
        wait_running(cloud.vast, instance.id, minutes=20)


def test_waiting_can_be_called_off(cloud: Cloud) -> None:
    cancel = Event()
    cancel.set()
    cloud.control.order("slow_loading", value=3600)
    with pytest.raises(Cancelled, match="goes on loading and costs up to"):
        wait_running(cloud.vast, rent(cloud), minutes=20, cancel=cancel)


def test_stopped_is_believed_only_when_the_provider_shows_it(cloud: Cloud) -> None:
    instance = cloud.running()
    stop(cloud, instance)
    seen: list[State | None] = []
    stopped = wait_stopped(
        cloud.vast, instance.id, poll_seconds=0.5, on_poll=lambda shown: seen.append(shown.state if shown else None)
    )
    assert stopped is not None
    assert stopped.stopped
    assert State.STOPPING in seen
    assert stopped.stopped_per_day == pytest.approx(0.13 * 64 / 720 * 24)


def test_a_stop_that_is_never_seen_may_still_be_billed(cloud: Cloud) -> None:
    instance = cloud.running()
    with pytest.raises(OutcomeUnknown, match="may still be billed") as caught:
        wait_stopped(cloud.vast, instance.id, minutes=1)
    assert caught.value.instance_id == instance.id


def test_silence_is_not_stopped(cloud: Cloud) -> None:
    instance = cloud.running()
    stop(cloud, instance)
    cloud.control.order("server_error", times=None, operation="show")
    with pytest.raises(OutcomeUnknown, match="has trouble of its own"):
        wait_stopped(cloud.vast, instance.id, minutes=1)


def test_gone_is_stopped_too(cloud: Cloud) -> None:
    assert wait_stopped(cloud.vast, 1) is None


def test_a_wrong_key_ends_the_wait(cloud: Cloud) -> None:
    with pytest.raises(WrongKey):
        wait_running(cloud.another("wrong"), 1, minutes=20)
