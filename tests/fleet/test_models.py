"""Reading the provider's rows: nothing invented, nothing trusted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.fleet.models import Account, Endpoint, Instance, Listing, Offer, State
from tests.fleet.conftest import FakeTime

ROW = {
    "id": 101,
    "label": "job-1",
    "actual_status": "running",
    "intended_status": "running",
    "cur_state": "running",
    "next_state": "running",
    "status_msg": "success, running pytorch_pytorch/ssh",
    "image_runtype": "ssh_direc ssh_proxy",
    "ssh_host": "ssh5.vast.ai",
    "ssh_port": 10882,
    "public_ipaddr": " 203.0.113.9\n",
    "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40022"}]},
    "disk_space": 40.0,
    "disk_usage": -1,
    "storage_cost": 0.15,
    "dph_base": 1.0,
    "dph_total": 1.00833,
    "start_date": 1761008618.2,
    "end_date": 1763600618.0,
}

STATES = [
    # actual, intended, cur, next, message -> state, surely not billed for a GPU
    (None, "running", "running", "running", None, State.PROVISIONING, False),
    ("created", "running", "running", "running", None, State.PROVISIONING, False),
    ("loading", "running", "running", "running", "Pulling fs layer", State.PROVISIONING, False),
    ("running", "running", "running", "running", "success", State.RUNNING, False),
    ("rebooting", "running", "running", "running", None, State.PROVISIONING, False),
    ("frozen", "running", "running", "running", None, State.RUNNING, False),
    ("created", "running", "running", "running", "OCI runtime create failed: x", State.FAILED, False),
    ("exited", "running", "running", "running", None, State.FAILED, False),
    ("exited", "running", "stopped", "running", None, State.SCHEDULING, False),
    ("running", "stopped", "running", "stopped", None, State.STOPPING, False),
    ("running", "stopped", "stopped", "stopped", None, State.STOPPING, False),
    ("exited", "stopped", "stopped", "stopped", None, State.STOPPED, True),
    ("stopped", "stopped", "stopped", "stopped", None, State.STOPPED, True),
    (None, "stopped", "stopped", "stopped", None, State.STOPPED, True),
    ("offline", "running", "running", "running", None, State.LOST, False),
    ("unknown", "running", "running", "running", None, State.LOST, False),
    ("something new", "running", "running", "running", None, State.UNKNOWN, False),
    ("running", None, None, None, None, State.UNKNOWN, False),
    ("running", 7, ["x"], {}, None, State.UNKNOWN, False),
]


@pytest.mark.parametrize(("actual", "intended", "cur", "following", "message", "state", "stopped"), STATES)
def test_four_status_fields_become_one_word(
    actual: Any, intended: Any, cur: Any, following: Any, message: Any, state: State, stopped: bool
) -> None:
    fields = {"actual_status": actual, "intended_status": intended, "cur_state": cur, "next_state": following}
    instance = Instance.read({**ROW, **fields, "status_msg": message})
    assert instance is not None
    assert (instance.state, instance.stopped) == (state, stopped)


def test_endpoints_are_computed_direct_first() -> None:
    instance = Instance.read(ROW)
    assert instance is not None
    direct, proxy = Endpoint("direct", "203.0.113.9", 40022), Endpoint("proxy", "ssh5.vast.ai", 10882)
    assert instance.endpoints == (direct, proxy)
    assert instance.ssh_port == 40022


@pytest.mark.parametrize(
    ("changes", "ports"),
    [
        ({"ports": None}, [10882]),
        ({"ports": {}}, [10882]),
        ({"ports": {"22/tcp": []}}, [10882]),
        ({"ports": {"22/tcp": [{"HostPort": "none"}]}}, [10882]),
        ({"ports": {"22/tcp": None}, "ssh_host": None}, []),
        ({"public_ipaddr": ""}, [10882]),
        ({"ssh_port": 0}, [40022]),
        ({"ssh_port": "99999"}, [40022]),
        ({"ports": None, "image_runtype": "jupyter_proxy ssh_proxy"}, [10883]),
    ],
)
def test_missing_ports_give_no_endpoint(changes: dict[str, Any], ports: list[int]) -> None:
    instance = Instance.read({**ROW, **changes})
    assert instance is not None
    assert [endpoint.port for endpoint in instance.endpoints] == ports


def test_minus_one_is_unknown_not_a_number_of_gigabytes() -> None:
    instance = Instance.read(ROW)
    assert instance is not None
    assert instance.disk_used_gb is None
    assert instance.stopped_per_day == pytest.approx(0.15 * 40 / 720 * 24)


OFFER_ROW = {
    "id": 9,
    "machine_id": 3,
    "gpu_name": "H200",
    "num_gpus": 1,
    "dph_base": 2.0,
    "storage_cost": 0.15,
    "gpu_ram": 143771,
}


@pytest.mark.parametrize(
    ("total", "storage", "price"),
    [
        (2.0 + 0.15 * 200 / 720, 0.15, 2.0 + 0.15 * 200 / 720),
        (2.001, 0.15, 2.0 + 0.15 * 200 / 720),  # priced for another disk than asked: the dearer holds
        (2.5, 0.15, 2.5),  # the provider asks more than the sum of the parts
        (2.1, None, 2.1),
        (None, 0.15, None),  # no price, no offer
        ("nan", 0.15, None),
    ],
)
def test_the_price_is_the_full_one(total: Any, storage: Any, price: float | None) -> None:
    offer = Offer.read({**OFFER_ROW, "dph_total": total, "storage_cost": storage}, disk_gb=200)
    assert (None if offer is None else offer.dph_total) == (None if price is None else pytest.approx(price))


def test_memory_is_given_in_megabytes() -> None:
    offer = Offer.read({**OFFER_ROW, "dph_total": 2.1}, disk_gb=10)
    assert offer is not None
    assert offer.gpu_memory_gb == pytest.approx(143.771)


@pytest.mark.parametrize("missing", ["id", "gpu_name", "num_gpus"])
def test_an_offer_without_what_renting_rests_on_is_none(missing: str) -> None:
    assert Offer.read({**OFFER_ROW, "dph_total": 2.1, missing: None}, disk_gb=10) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*ROW, "gpu_name", "num_gpus", "credit"]), JSON))
def test_no_row_of_any_shape_breaks_the_reading(row: dict[str, Any]) -> None:
    instance = Instance.read(row)
    if instance is not None:
        assert isinstance(instance.id, int)
        assert isinstance(instance.state, State)
        assert all(0 < endpoint.port < 65536 for endpoint in instance.endpoints)
    Offer.read(row, disk_gb=10)
    Account.read(row, read_at=FakeTime().now)


def test_an_unreadable_list_has_no_count() -> None:
    instance = Instance.read(ROW)
    assert instance is not None
    now = FakeTime().now
    known, unknown = Listing(True, (instance,), now), Listing(False, (instance,), now, "timeout")
    assert (known.count(), known.live()) == (1, 1)
    assert (unknown.count(), unknown.live()) == (None, None)
    assert known.with_label("job-1") == (instance,)
    assert known.with_label("job") == ()
