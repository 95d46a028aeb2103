"""The market: prices and search, as the real SDK asks for them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bruno.sandbox import offers

CATALOGUE = offers.load_catalogue()


def find(**body: object) -> list[dict]:
    return offers.search(CATALOGUE.values(), body, rented=set(), now=0.0)


def test_catalogue_has_what_the_console_asks_for():
    names = {offer.gpu_name for offer in CATALOGUE.values()}
    assert {"H200", "H100 SXM", "H100 PCIE", "A100 SXM4", "RTX 4090"} <= names
    for name in ("H200", "H100 SXM", "A100 SXM4", "RTX 4090"):
        mine = [offer for offer in CATALOGUE.values() if offer.gpu_name == name]
        assert len(mine) >= 3
        assert max(offer.num_gpus for offer in mine) > 1


@settings(derandomize=True)
@given(st.sampled_from(sorted(CATALOGUE)), st.floats(1, 2000))
def test_price_is_gpu_plus_disk(offer_id: int, storage: float):
    row = offers.offer_row(CATALOGUE[offer_id], storage=storage, bid=False, rented=False, now=0)
    assert row["dph_total"] == pytest.approx(row["dph_base"] + row["storage_cost"] * storage / 720)
    assert row["search"]["totalHour"] == pytest.approx(row["dph_total"])


FILTERS = [
    ({"gpu_name": {"eq": "H200"}}, lambda r: r["gpu_name"] == "H200"),
    ({"gpu_name": {"neq": "H200"}}, lambda r: r["gpu_name"] != "H200"),
    ({"num_gpus": {"eq": "2"}}, lambda r: r["num_gpus"] == 2),
    ({"disk_space": {"gte": "1000"}}, lambda r: r["disk_space"] >= 1000),
    ({"disk_space": {"gt": 1000, "lt": "2000"}}, lambda r: 1000 < r["disk_space"] < 2000),
    ({"dph_total": {"lte": "1.0"}}, lambda r: r["dph_total"] <= 1.0),
    ({"gpu_ram": {"gte": 80000.0}}, lambda r: r["gpu_ram"] >= 80000),
    ({"verified": {"eq": False}}, lambda r: r["verified"] is False),
    ({"verified": {"eq": "true"}}, lambda r: r["verified"] is True),
    ({"gpu_name": {"in": ["H200", "B200"]}}, lambda r: r["gpu_name"] in {"H200", "B200"}),
    ({"num_gpus": {"notin": ["1", "2"]}}, lambda r: r["num_gpus"] not in {1, 2}),
    ({"geolocation": {"in": ["IS", "NO"]}}, lambda r: r["geolocation"][-2:] in {"IS", "NO"}),
    ({"geolocation": {"eq": "IS"}}, lambda r: r["geolocation"].endswith(", IS")),
    ({"geolocation": {"notin": ["US"]}}, lambda r: not r["geolocation"].endswith(", US")),
]


@pytest.mark.parametrize(("body", "wanted"), FILTERS, ids=[str(body) for body, _ in FILTERS])
def test_filters(body: dict, wanted):
    everything = find()
    found = [row["id"] for row in find(**body)]
    assert found == [row["id"] for row in everything if wanted(row)]
    assert 0 < len(found) < len(everything)


def test_order_limit_and_storage():
    rows = find(order=[["num_gpus", "desc"], ["dph_total", "asc"]], limit=5, allocated_storage=300)
    keys = [(-row["num_gpus"], row["dph_total"]) for row in rows]
    assert len(rows) == 5
    assert keys == sorted(keys)


def test_storage_can_change_which_offer_is_cheapest():
    def cheapest(storage: float) -> dict:
        query = {"gpu_name": {"eq": "RTX 4090"}, "verified": {"eq": True}, "num_gpus": {"eq": 1}}
        return find(**query, order=[["dph_total", "asc"]], allocated_storage=storage)[0]

    assert cheapest(5)["storage_total_cost"] < cheapest(300)["storage_total_cost"]
    assert cheapest(300)["dph_total"] - cheapest(300)["dph_base"] == pytest.approx(
        cheapest(300)["storage_cost"] * 300 / 720
    )


def test_rented_offers_are_marked():
    rows = offers.search(CATALOGUE.values(), {"rentable": {"eq": True}}, rented={20871102}, now=0)
    assert 20871102 not in {row["id"] for row in rows}


def test_bids_are_priced_by_the_bid():
    row = find(type="bid", gpu_name={"eq": "H200"}, allocated_storage=0)[0]
    assert row["dph_total"] == row["min_bid"]
    assert row["is_bid"] is True


BAD = [
    {"gpu_nmae": {"eq": "H200"}},
    {"num_gpus": {"eq": "two"}},
    {"num_gpus": {"about": 2}},
    {"num_gpus": 2},
    {"gpu_name": {"in": "H200"}},
    {"type": "free"},
    {"order": [["nothing", "asc"]]},
    {"allocated_storage": "lots"},
]


@pytest.mark.parametrize("body", BAD, ids=str)
def test_bad_queries_are_refused(body: dict):
    with pytest.raises(offers.QueryError):
        find(**body)
