"""Reading the emulated provider through the real package, with everything on the fault menu that concerns reading."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bruno.errors import Unreachable
from bruno.fleet.errors import RateLimited, WrongKey
from bruno.fleet.models import OfferQuery, State
from bruno.fleet.vast import Vast
from tests.fleet.conftest import OFFER, Cloud, FakeTime

H200 = OfferQuery(gpu_names=("H200", "H200_NVL"), disk_gb=200)


def test_offers_come_cheapest_first_at_the_price_of_the_wanted_disk(cloud: Cloud) -> None:
    offers = cloud.vast.offers(H200)
    assert [offer.gpu for offer in offers] == ["H200 NVL", "H200", "H200"]
    assert [offer.dph_total for offer in offers] == sorted(offer.dph_total for offer in offers)
    assert all(offer.gpu_count == 1 for offer in offers)
    assert all(offer.disk_available_gb and offer.disk_available_gb >= 200 for offer in offers)
    chosen = next(offer for offer in offers if offer.id == OFFER)
    assert chosen.dph_total == pytest.approx(2.61 + 0.13 * 200 / 720)
    assert chosen.stopped_per_day == pytest.approx(0.13 * 200 / 720 * 24)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"max_dph": 2.40}, [20602218]),
        ({"max_dph": 1.0}, []),
        ({"gpu_count": 4, "gpu_names": ("H200",)}, [20998250]),
        ({"min_gpu_memory_gb": 80, "gpu_names": ("RTX_4090",)}, []),  # memory in GB, sent as MB, multiplied by nobody
        (
            {"gpu_names": ("RTX_4090",), "min_gpu_memory_gb": 24},
            [19722030, 19722561],
        ),  # not the unverified, nor one without ports
        ({"min_reliability": 0.999}, [OFFER]),
        ({"min_download_mbps": 6000}, [OFFER]),
        ({"offer_id": OFFER}, [OFFER]),
        ({"offer_id": 1}, []),
        ({"min_hours": 24 * 60}, []),
    ],
)
def test_what_is_asked_for_is_what_is_found(cloud: Cloud, changes: dict[str, object], found: list[int]) -> None:
    query = OfferQuery(**{"gpu_names": H200.gpu_names, "disk_gb": 200, **changes})  # type: ignore[arg-type]
    assert [offer.id for offer in cloud.vast.offers(query)] == found


def test_the_list_is_read_whole_over_several_pages(cloud: Cloud) -> None:
    ids = [cloud.control.seed(OFFER, label=f"bruno-{n}", running=False) for n in range(27)]
    listing = cloud.vast.instances()
    assert listing.known
    assert [instance.id for instance in listing.instances] == ids
    assert (listing.count(), listing.live()) == (27, 0)
    found = cloud.vast.find_by_label("bruno-26")
    assert found is not None
    assert found.id == ids[26]


def test_an_empty_list_that_was_read_is_known(cloud: Cloud) -> None:
    listing = cloud.vast.instances()
    assert (listing.known, listing.count(), listing.problem) == (True, 0, "")
    assert cloud.vast.find_by_label("bruno-a") is None


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("list_gone", 1),
        ("list_missing_row", 1),
        ("server_error", 4),
        ("rate_limit_text", 4),
        ("rate_limit_json", 4),
        ("reply_lost", 4),
    ],
)
def test_a_list_that_cannot_be_read_is_unknown_not_empty(cloud: Cloud, fault: str, times: int) -> None:
    cloud.running("bruno-a")
    operation = None if fault.startswith("list") else "list"
    cloud.control.order(fault, times=times, operation=operation)
    listing = cloud.vast.instances()
    assert not listing.known
    assert listing.problem
    assert (listing.count(), listing.live()) == (None, None)
    cloud.control.order(fault, times=times, operation=operation)
    with pytest.raises(Unreachable, match="cannot tell whether"):
        cloud.vast.find_by_label("bruno-a")
    assert cloud.vast.instances().known  # and the next reading is believed again


@pytest.mark.parametrize("fault", ["server_error", "rate_limit_text", "rate_limit_json", "reply_lost"])
def test_reads_are_repeated_with_pauses_above_the_providers_thresholds(cloud: Cloud, fault: str) -> None:
    instance = cloud.running()
    cloud.control.order(fault, times=2, operation="show")
    cloud.time.slept.clear()
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.id == instance.id
    assert sum(cloud.time.slept) >= 6


def test_a_used_up_search_quota_is_not_asked_again(cloud: Cloud) -> None:
    cloud.control.order("search_quota", times=1)
    with pytest.raises(RateLimited, match="midnight"):
        cloud.vast.offers(H200)
    assert cloud.vast.offers(H200)


def test_an_instance_is_gone_only_when_the_provider_says_so(cloud: Cloud) -> None:
    instance = cloud.running()
    assert cloud.vast.instance(instance.id + 1) is None
    cloud.control.order("server_error", times=4, operation="show")
    with pytest.raises(Unreachable):
        cloud.vast.instance(instance.id)


def test_a_null_status_and_null_ports_are_read_for_what_they_are(cloud: Cloud) -> None:
    instance = cloud.running()
    cloud.control.order("null_status", times=1, instance=instance.id)
    cloud.control.order("ports_null", times=1, instance=instance.id)
    shown = cloud.vast.instance(instance.id)
    assert shown is not None
    assert shown.state is State.PROVISIONING
    assert shown.direct is None
    assert shown.proxy is not None


def test_two_instances_with_one_label_are_nobodys(cloud: Cloud) -> None:
    cloud.running("bruno-a")
    cloud.running("bruno-a", offer=20871102)
    with pytest.raises(Unreachable, match="2 instances carry the label"):
        cloud.vast.find_by_label("bruno-a")


def test_one_poll_feeds_all_views(cloud: Cloud) -> None:
    first = cloud.vast.instances()
    cloud.running()
    assert cloud.vast.instances(max_age=5) is first
    cloud.time.now += timedelta(seconds=6)
    assert cloud.vast.instances(max_age=5).count() == 1


def test_an_unknown_list_is_never_given_a_second_time(cloud: Cloud) -> None:
    cloud.control.order("list_gone", times=1)
    assert not cloud.vast.instances(max_age=60).known
    assert cloud.vast.instances(max_age=60).known


def test_the_account_shows_its_credit(cloud: Cloud) -> None:
    cloud.control.set_credit(12.5)
    assert cloud.vast.account().credit == pytest.approx(12.5)


def test_a_wrong_key_is_one_clear_error_everywhere(cloud: Cloud) -> None:
    wrong = cloud.another("wrong-key")
    for read in (wrong.instances, wrong.account, wrong.ssh_keys, lambda: wrong.instance(1), lambda: wrong.offers(H200)):
        with pytest.raises(WrongKey, match="does not accept the API key"):
            read()


def test_no_network_is_one_clear_error(tmp_path: object) -> None:
    time = FakeTime()
    vast = Vast("a-key", "http://127.0.0.1:1", clock=time.clock, sleep=time.sleep)
    with pytest.raises(Unreachable, match=r"no connection to http://127\.0\.0\.1:1\. Check the network"):
        vast.account()
    listing = vast.instances()
    assert (listing.known, listing.problem) == (
        False,
        "could not list the instances: no connection to http://127.0.0.1:1. Check the network",
    )


def test_a_silent_server_costs_the_timeout_and_no_more(cloud: Cloud) -> None:
    impatient = Vast(cloud.api_key, cloud.url, timeout=0.05, clock=cloud.time.clock, sleep=cloud.time.sleep)
    cloud.control.order("hang", times=4, operation="user", value=0.3)
    with pytest.raises(Unreachable, match="did not answer in time"):
        impatient.account()
