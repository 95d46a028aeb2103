"""Acting on the emulated provider: only with a permit, only on what was confirmed, and never twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from bruno.errors import BrunoError, Denied, Unreachable
from bruno.fleet import acts
from bruno.fleet.errors import (
    FactsChanged,
    InstanceGone,
    NoCredit,
    OfferGone,
    OutcomeUnknown,
    RateLimited,
    RentedButStopped,
    WrongKey,
)
from bruno.fleet.keys import KeyPair
from bruno.fleet.models import Instance, State
from bruno.guard.actions import Action, DestroyInstance, RegisterKey, StartInstance, StopInstance, Target
from tests.fleet.conftest import Cloud, permit_for, rental


def rent(cloud: Cloud, **changes: object) -> int:
    action = rental(**changes)  # type: ignore[arg-type]
    return acts.create(cloud.vast, action, permit_for(action, now=cloud.now), cloud.now)


def ids(cloud: Cloud) -> list[int]:
    return [row["id"] for row in cloud.control.overview()["instances"]]


def target(instance: Instance, **changes: Any) -> Target:
    fields = {"instance_id": instance.id, "label": instance.label, "ssh_port": instance.ssh_port}
    return Target.model_validate({**fields, **changes})


def perform(cloud: Cloud, action: Any, act: Callable[..., None]) -> None:
    act(cloud.vast, action, permit_for(action, now=cloud.now), cloud.now)


# Permits


def all_acts(instance: Instance) -> list[tuple[Callable[..., Any], Action, dict[str, str]]]:
    where = target(instance)
    return [
        (acts.create, rental(), {}),
        (acts.start, StartInstance(target=where, max_dph=9), {}),
        (acts.stop, StopInstance(target=where), {}),
        (acts.destroy, DestroyInstance(target=where), {}),
        (acts.register_key, RegisterKey(fingerprint="SHA256:x"), {"public_key": "ssh-ed25519 AAAA"}),
    ]


@pytest.mark.parametrize("number", range(5))
def test_no_act_without_a_permit_for_exactly_it(cloud: Cloud, number: int) -> None:
    instance = cloud.running()
    act, action, more = all_acts(instance)[number]
    other = permit_for(rental(label="another"), now=cloud.now)
    with pytest.raises(Denied, match="does not contain"):
        act(cloud.vast, action, other, cloud.now, **more)
    stale = permit_for(action, now=cloud.now)
    with pytest.raises(Denied, match="expired"):
        act(cloud.vast, action, stale, cloud.now + timedelta(minutes=5), **more)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert (ids(cloud), shown.state) == ([instance.id], State.RUNNING)


# Renting


def test_an_offer_is_rented_as_confirmed(cloud: Cloud) -> None:
    identity = rent(cloud)
    shown = cloud.vast.instance(identity)
    assert shown is not None
    assert (shown.label, shown.gpu, shown.disk_gb, shown.image) == ("bruno-a", "H200", 64.0, "pytorch/pytorch")
    assert shown.raw["image_runtype"] == "ssh_direc ssh_proxy"
    assert shown.dph_total == pytest.approx(2.61 + 0.13 * 64 / 720)


def test_the_same_label_is_never_rented_twice(cloud: Cloud) -> None:
    assert rent(cloud) == rent(cloud)
    assert len(ids(cloud)) == 1


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"max_dph": 2.61}, "price: confirmed up to $2.6100/h, now $2.6216/h"),
        ({"gpu": "H100 SXM"}, "GPU: confirmed H100 SXM, now H200"),
        ({"machine_id": 1}, "machine: confirmed 1, now 29955"),
    ],
)
def test_an_offer_that_changed_is_not_rented(cloud: Cloud, changes: dict[str, object], difference: str) -> None:
    with pytest.raises(FactsChanged) as caught:
        rent(cloud, **changes)
    assert caught.value.differences == (difference,)
    assert ids(cloud) == []


@pytest.mark.parametrize("changes", [{"offer_id": 1}, {"gpu_count": 2}, {"disk_gb": 99999.0}])
def test_an_offer_that_is_gone_or_too_small_is_not_rented(cloud: Cloud, changes: dict[str, object]) -> None:
    with pytest.raises(OfferGone):
        rent(cloud, **changes)
    assert ids(cloud) == []


@pytest.mark.parametrize("status", [400, 404, 410])
def test_an_offer_taken_at_the_last_moment(cloud: Cloud, status: int) -> None:
    cloud.control.order("no_such_ask", value=status)
    with pytest.raises(OfferGone, match="no longer there"):
        rent(cloud)
    assert ids(cloud) == []


@pytest.mark.parametrize("word", ["insufficient_credit", "missing_billing", "spend_rate_limit"])
def test_no_credit(cloud: Cloud, word: str) -> None:
    cloud.control.order("no_credit", value=word)
    with pytest.raises(NoCredit, match="no credit"):
        rent(cloud)
    assert ids(cloud) == []


def test_a_wrong_key_rents_nothing(cloud: Cloud) -> None:
    action = rental()
    with pytest.raises(WrongKey):
        acts.create(cloud.another("wrong"), action, permit_for(action, now=cloud.now), cloud.now)


def test_a_lost_reply_is_found_by_its_label_and_not_repeated(cloud: Cloud) -> None:
    cloud.control.order("reply_lost", operation="create", times=3)
    identity = rent(cloud)
    assert ids(cloud) == [identity]
    assert cloud.control.faults()[0].times == 2  # one request was sent, so one fault is used up


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_error_is_not_repeated_either(cloud: Cloud, status: int) -> None:
    cloud.control.order("server_error", operation="create", times=3, value=status)
    with pytest.raises(OutcomeUnknown) as caught:
        rent(cloud)
    assert caught.value.label == "bruno-a"
    assert cloud.control.faults()[0].times == 2
    assert cloud.time.slept[-2:] == [3.0, 6.0]  # the list was given time to show it


def test_a_limited_create_is_a_definite_no(cloud: Cloud) -> None:
    cloud.control.order("rate_limit_text", operation="create")
    with pytest.raises(RateLimited):
        rent(cloud)
    assert ids(cloud) == []


def test_a_lost_reply_and_an_unreadable_list_stay_unknown(cloud: Cloud) -> None:
    action = rental()
    permit = permit_for(action, now=cloud.now)
    cloud.control.order("reply_lost", operation="create")
    # the list works before the rental, and not after it
    original = cloud.vast.once

    def then_break(kind: str, doing: str, call: Any) -> Any:
        if kind == "create":
            cloud.control.order("list_gone", times=3)
        return original(kind, doing, call)

    cloud.vast.once = then_break  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown, match="unknown"):
        acts.create(cloud.vast, action, permit, cloud.now)
    cloud.vast.once = original  # type: ignore[method-assign]
    assert acts.create(cloud.vast, action, permit, cloud.now) == ids(cloud)[0]
    assert len(ids(cloud)) == 1


def test_nothing_is_rented_while_the_list_cannot_be_read(cloud: Cloud) -> None:
    cloud.control.order("list_gone", times=1)
    with pytest.raises(Unreachable, match="cannot tell whether"):
        rent(cloud)
    assert ids(cloud) == []


def test_a_refusal_that_left_a_stopped_instance_names_it_and_its_cost(cloud: Cloud) -> None:
    cloud.control.order("refused_but_created")
    with pytest.raises(RentedButStopped, match=r"its disk costs \$0\.28 per day") as caught:
        rent(cloud)
    assert ids(cloud) == [caught.value.instance_id]


# Stopping, starting, destroying


def test_stop_asks_for_exactly_the_instance_that_was_confirmed(cloud: Cloud) -> None:
    other, mine = cloud.running("bruno-other"), cloud.running("bruno-mine", offer=20871102)
    perform(cloud, StopInstance(target=target(mine)), acts.stop)
    cloud.time.sleep(30)
    states = {instance.id: instance.state for instance in cloud.vast.instances().instances}
    assert states == {other.id: State.RUNNING, mine.id: State.STOPPED}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"label": "bruno-b"}, "label: confirmed bruno-b, now bruno-a"),
        ({"ssh_port": 1}, "SSH port: confirmed 1"),
        ({"ssh_port": None}, "SSH port: confirmed unknown"),
    ],
)
@pytest.mark.parametrize("act", ["stop", "destroy"])
def test_an_instance_that_is_not_as_confirmed_is_left_alone(
    cloud: Cloud, act: str, changes: dict[str, Any], difference: str
) -> None:
    instance = cloud.running("bruno-a")
    where = target(instance, **changes)
    action = StopInstance(target=where) if act == "stop" else DestroyInstance(target=where)
    with pytest.raises(FactsChanged) as caught:
        perform(cloud, action, getattr(acts, act))
    assert caught.value.differences[0].startswith(difference)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.state is State.RUNNING


def test_an_instance_without_a_label_is_not_one_with_a_label(cloud: Cloud) -> None:
    instance = cloud.vast.instance(cloud.control.seed(20871102, label=None))
    assert instance is not None
    with pytest.raises(FactsChanged, match="now unknown"):
        perform(cloud, StopInstance(target=target(instance, label="bruno-a")), acts.stop)


def test_stopping_what_is_gone_says_so(cloud: Cloud) -> None:
    with pytest.raises(InstanceGone):
        perform(cloud, StopInstance(target=Target(instance_id=1, label="bruno-a")), acts.stop)


def test_nothing_is_stopped_while_the_instance_cannot_be_read(cloud: Cloud) -> None:
    instance = cloud.running()
    cloud.control.order("server_error", times=4, operation="show")
    with pytest.raises(Unreachable):
        perform(cloud, StopInstance(target=target(instance)), acts.stop)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.state is State.RUNNING


def test_a_lost_reply_to_a_stop_is_read_back(cloud: Cloud) -> None:
    instance = cloud.running()
    cloud.control.order("reply_lost", operation="stop")
    perform(cloud, StopInstance(target=target(instance)), acts.stop)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.intended_status == "stopped"


def test_a_stop_that_did_not_arrive_is_unknown_not_done(cloud: Cloud) -> None:
    instance = cloud.running()
    cloud.control.order("server_error", operation="stop")
    with pytest.raises(OutcomeUnknown) as caught:
        perform(cloud, StopInstance(target=target(instance)), acts.stop)
    assert caught.value.instance_id == instance.id


def test_start_compares_label_price_and_contract(cloud: Cloud) -> None:
    instance = cloud.vast.instance(cloud.control.seed(20871102, label="bruno-a", running=False))
    assert instance is not None
    assert instance.dph_total is not None
    with pytest.raises(FactsChanged, match="label"):
        perform(cloud, StartInstance(target=target(instance, label="x"), max_dph=9), acts.start)
    with pytest.raises(FactsChanged, match="price"):
        perform(cloud, StartInstance(target=target(instance), max_dph=instance.dph_total - 0.01), acts.start)
    perform(cloud, StartInstance(target=target(instance), max_dph=instance.dph_total), acts.start)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.state is State.PROVISIONING
    cloud.time.sleep(31 * 24 * 3600)
    with pytest.raises(FactsChanged, match="contract: ended"):
        perform(cloud, StartInstance(target=target(instance), max_dph=9), acts.start)


def test_start_without_credit(cloud: Cloud) -> None:
    instance = cloud.vast.instance(cloud.control.seed(20871102, label="bruno-a", running=False))
    assert instance is not None
    cloud.control.set_credit(0)
    with pytest.raises(NoCredit):
        perform(cloud, StartInstance(target=target(instance), max_dph=9), acts.start)


def test_destroy_is_done_when_the_instance_is_gone(cloud: Cloud) -> None:
    instance = cloud.running()
    action = DestroyInstance(target=target(instance))
    perform(cloud, action, acts.destroy)
    assert ids(cloud) == []
    perform(cloud, action, acts.destroy)


def test_a_lost_reply_to_a_destroy_is_read_back(cloud: Cloud) -> None:
    instance = cloud.running()
    cloud.control.order("reply_lost", operation="destroy")
    perform(cloud, DestroyInstance(target=target(instance)), acts.destroy)
    assert ids(cloud) == []


# Keys


def register(cloud: Cloud, key: KeyPair, **changes: Any) -> None:
    action = RegisterKey.model_validate({"fingerprint": key.fingerprint, **changes})
    permit = permit_for(action, now=cloud.now)
    acts.register_key(cloud.vast, action, permit, cloud.now, public_key=key.public_key)


def test_the_key_is_registered_once(cloud: Cloud, key: KeyPair) -> None:
    register(cloud, key)
    register(cloud, key)
    assert [known.split()[:2] for known in cloud.vast.ssh_keys()] == [key.public_key.split()[:2]]


def test_another_key_than_the_confirmed_one_is_not_registered(cloud: Cloud, key: KeyPair) -> None:
    with pytest.raises(FactsChanged, match="SHA256:other"):
        register(cloud, key, fingerprint="SHA256:other")
    assert cloud.vast.ssh_keys() == ()


def test_the_error_is_always_one_line(cloud: Cloud) -> None:
    cloud.control.order("server_error", operation="create")
    with pytest.raises(BrunoError) as caught:
        rent(cloud)
    assert "\n" not in str(caught.value)
