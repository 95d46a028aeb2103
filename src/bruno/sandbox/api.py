"""The provider's HTTP API: one small function per request the real client makes, and the table that routes them.

A function gets the `World` and the `Call` and returns what becomes the JSON body; it raises `Refusal` for the answers
the provider gives to bad requests. Authorisation, faults and transport are `http.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bruno.sandbox import offers, pages, rows
from bruno.sandbox.faults import FaultKind
from bruno.sandbox.state import Instance
from bruno.sandbox.world import Refusal, World

PAGE = 25
DONE: dict[str, Any] = {"success": True}


@dataclass(frozen=True)
class Call:
    """One request: the names in its path, its query with JSON values decoded, and its JSON body."""

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]

    @property
    def id(self) -> int:
        """The `{id}` of the path. Raises `Refusal` 400 if it is no number."""
        try:
            return int(self.path["id"])
        except ValueError:
            raise Refusal(400, "invalid_args", f"id {self.path['id']!r} is not a number.") from None


Handler = Callable[[World, Call], Any]


@dataclass(frozen=True)
class Route:
    """A request the provider knows: method, path below /api, what the fault menu calls it, who answers.

    `billing` endpoints say 404 to a wrong key; `public` ones ask for none.
    """

    method: str
    path: str
    operation: str
    handler: Handler
    billing: bool = False
    public: bool = False

    def named(self, body: Mapping[str, Any]) -> str:
        """The operation; for the one path that serves three, told by the body."""
        if self.operation != "update":
            return self.operation
        return {"running": "start", "stopped": "stop"}.get(str(body.get("state")), "label")


def search(world: World, call: Call) -> dict[str, Any]:
    """Offers that fit a query; `PUT /search/asks/` wraps the same query in `q`."""
    query = call.body.get("q", call.body)
    try:
        found = offers.search(world.catalogue.values(), query, rented=world.rented(), now=world.now())
    except offers.QueryError as error:
        raise Refusal(400, "invalid_args", str(error)) from error
    return {"success": True, "offers": found}


def create(world: World, call: Call) -> dict[str, Any]:
    """Rent one offer."""
    return world.create(call.id, call.body)


def create_many(world: World, call: Call) -> dict[str, Any]:
    """Rent several offers; the answer of each, in order."""
    return {"success": True, "results": [world.create(int(offer), call.body) for offer in call.body.get("ids", [])]}


def show(world: World, call: Call) -> dict[str, Any]:
    """One instance, or null when there is none: not an error."""
    instance = world.state.instances.get(call.id)
    return {"instances": None if instance is None else _row(world, instance)}


def list_instances(world: World, call: Call) -> dict[str, Any]:
    """A page of the account's instances."""
    if world.faults.take(FaultKind.LIST_GONE):
        raise _deprecated("/api/v1/instances/")
    found = [_row(world, instance) for instance in world.state.instances.values()]
    total = len(found)
    if missing := world.faults.take(FaultKind.LIST_MISSING_ROW, wherever=True):
        gone = missing.instance if missing.instance is not None else next(iter(world.state.instances), None)
        found = [row for row in found if row["id"] != gone]
    filters = call.query.get("select_filters") or {}
    found = [row for row in found if all(pages.fits(row, column, tests) for column, tests in filters.items())]
    for order in reversed(call.query.get("order_by") or [{"col": "id", "dir": "asc"}]):
        found.sort(
            key=lambda row: (pages.column(row, order["col"]) is None, row[order["col"]]),
            reverse=order.get("dir") == "desc",
        )
    start = pages.offset(call.query.get("after_token"))
    limit = min(int(call.query.get("limit") or PAGE), PAGE)
    page, more = found[start : start + limit], len(found) > start + limit
    labels = [row["label"] for row in found]
    if columns := call.query.get("select_cols"):
        page = [{column: pages.column(row, column) for column in columns} for row in page]
    return {
        "success": True,
        "instances": page,
        "instances_found": len(found),
        "total_instances": total,
        "label_counts": {label or "": labels.count(label) for label in labels},
        "next_token": pages.token(start + limit) if more else None,
    }


def list_v0(_world: World, _call: Call) -> dict[str, Any]:
    """The list as it was before 2026: gone."""
    raise _deprecated("/api/v0/instances/")


def _deprecated(path: str) -> Refusal:
    return Refusal(410, "deprecated_endpoint", f"{path} is deprecated. Use /api/v1/instances/ instead.")


def filters(world: World, _call: Call) -> dict[str, Any]:
    """The values the list can be filtered by."""
    columns = ("actual_status", "verification", "gpu_name")
    all_rows = [_row(world, instance) for instance in world.state.instances.values()]
    return {"filters": [{column: row[column] for column in columns} for row in all_rows]}


def update(world: World, call: Call) -> dict[str, Any]:
    """Start, stop or label one instance."""
    if "label" in call.body:
        world.relabel(call.id, str(call.body["label"]))
        return DONE
    world.set_power(call.id, str(call.body.get("state")))
    return {"success": True, "msg": f"Instance {call.id} state change requested."}


def update_many(world: World, call: Call) -> dict[str, Any]:
    """Start or stop several instances."""
    for instance_id in call.body.get("ids", []):
        world.set_power(int(instance_id), str(call.body.get("state")))
    return DONE


def destroy(world: World, call: Call) -> dict[str, Any]:
    """Delete one instance."""
    world.destroy(call.id)
    return DONE


def destroy_many(world: World, call: Call) -> dict[str, Any]:
    """Delete several instances."""
    for instance_id in call.body.get("instance_ids", []):
        world.destroy(int(instance_id))
    return DONE


def reboot(world: World, call: Call) -> dict[str, Any]:
    """Restart one instance's container in place."""
    world.reboot(call.id)
    return DONE


def change_bid(world: World, call: Call) -> dict[str, Any]:
    """A new price for an interruptible instance."""
    price = call.body.get("price")
    world.change_bid(call.id, None if price is None else float(price))
    return DONE


def account_keys(world: World, _call: Call) -> list[dict[str, Any]]:
    """The account's SSH keys."""
    return [_key(k.id, k.public_key, k.created_at) for k in world.state.keys]


def add_account_key(world: World, call: Call) -> dict[str, Any]:
    """Add an SSH key to the account."""
    key = world.add_key(call.body.get("ssh_key", ""))
    return {"success": True, "key": _key(key.id, key.public_key, key.created_at)}


def remove_account_key(world: World, call: Call) -> dict[str, Any]:
    """Take an SSH key from the account; instances keep theirs."""
    left = [key for key in world.state.keys if key.id != call.id]
    if len(left) == len(world.state.keys):
        raise Refusal(404, "no_such_key", f"SSH key {call.id} not found.")
    world.state.keys = left
    return DONE


def instance_keys(world: World, call: Call) -> dict[str, Any]:
    """The keys on one instance: JSON inside JSON, as the provider has it."""
    keys = [_key(k.id, k.public_key, k.effective_at) for k in world.instance(call.id).keys]
    return {"success": True, "ssh_keys": json.dumps(keys)}


def attach_key(world: World, call: Call) -> dict[str, Any]:
    """Put a key on one instance."""
    world.attach_key(call.id, call.body.get("ssh_key", ""))
    return {"success": True, "msg": "SSH key added to instance."}


def detach_key(world: World, call: Call) -> dict[str, Any]:
    """Take a key from one instance."""
    world.detach_key(call.id, int(call.path["key"]))
    return DONE


def _key(key_id: int, public_key: str, created: float) -> dict[str, Any]:
    when = datetime.fromtimestamp(created, UTC).isoformat()
    return {
        "id": key_id,
        "user_id": 1,
        "key": public_key,
        "public_key": public_key,
        "created_at": when,
        "deleted_at": None,
    }


def user(world: World, _call: Call) -> dict[str, Any]:
    """The account."""
    return {
        "id": 1,
        "email": "sandbox@localhost",
        "username": "sandbox",
        "credit": world.state.credit,
        "balance": 0.0,
        "balance_threshold": 0.0,
        "balance_threshold_enabled": False,
        "ssh_key": world.state.keys[0].public_key if world.state.keys else None,
        "has_billing": True,
        "can_pay": True,
        "host_agreement_accepted": False,
        "api_key": world.state.api_key,
    }


def charges(world: World, call: Call) -> dict[str, Any]:
    """The cost report: a row per instance and day."""
    window = (call.query.get("select_filters") or {}).get("day", {})
    first, last = float(window.get("gte", 0)), float(window.get("lte", float("inf")))
    found = [c for c in world.state.charges if c.end >= first and c.start <= last]
    found.sort(key=lambda c: c.start, reverse=bool(call.query.get("latest_first")))
    start, limit = pages.offset(call.query.get("after_token")), min(int(call.query.get("limit") or 20), 100)
    page = found[start : start + limit]
    token = pages.token(start + limit) if len(found) > start + limit else None
    results = [rows.charge_row(charge) for charge in page]
    return {"success": True, "results": results, "count": len(page), "total": len(found), "next_token": token}


def invoices(_world: World, _call: Call) -> dict[str, Any]:
    """Payments: the sandbox has none."""
    return {"success": True, "results": [], "count": 0, "total": 0, "next_token": None}


def gpu_names(world: World, _call: Call) -> dict[str, Any]:
    """Every GPU name in the market."""
    return {"gpu_names": sorted({offer.gpu_name for offer in world.catalogue.values()})}


def _row(world: World, instance: Instance) -> dict[str, Any]:
    row = rows.instance_row(instance, pace=world.state.pace, now=world.now())
    if world.faults.take(FaultKind.NULL_STATUS, instance=instance.id):
        row.update(actual_status=None, status_msg=None, ports=None)
    if world.faults.take(FaultKind.PORTS_NULL, instance=instance.id):
        row["ports"] = None
    return row


READS = frozenset(
    {
        *("search", "list", "list_v0", "filters", "show", "instance_keys", "keys", "user", "charges", "invoices"),
        *("gpu_names", "logs"),
    }
)
"""Operations that change nothing. Everything else is an act, and is written down as one."""
ROUTES = [
    Route("POST", "/v0/bundles/", "search", search),
    Route("PUT", "/v0/search/asks/", "search", search),
    Route("PUT", "/v0/asks/{id}/", "create", create),
    Route("POST", "/v0/asks/bulk/", "create", create_many),
    Route("GET", "/v1/instances/", "list", list_instances),
    Route("GET", "/v0/instances/", "list_v0", list_v0),
    Route("GET", "/v0/instances/filters/", "filters", filters),
    Route("PUT", "/v0/instances/", "update", update_many),
    Route("DELETE", "/v0/instances/", "destroy", destroy_many),
    Route("GET", "/v0/instances/{id}/", "show", show),
    Route("PUT", "/v0/instances/{id}/", "update", update),
    Route("DELETE", "/v0/instances/{id}/", "destroy", destroy),
    Route("PUT", "/v0/instances/reboot/{id}/", "reboot", reboot),
    Route("PUT", "/v0/instances/recycle/{id}/", "reboot", reboot),
    Route("PUT", "/v0/instances/bid_price/{id}/", "bid", change_bid),
    Route("GET", "/v0/instances/{id}/ssh/", "instance_keys", instance_keys),
    Route("POST", "/v0/instances/{id}/ssh/", "attach", attach_key),
    Route("DELETE", "/v0/instances/{id}/ssh/{key}/", "detach", detach_key),
    Route("GET", "/v0/ssh/", "keys", account_keys),
    Route("POST", "/v0/ssh/", "add_key", add_account_key),
    Route("DELETE", "/v0/ssh/{id}/", "remove_key", remove_account_key),
    Route("GET", "/v0/users/current", "user", user),
    Route("GET", "/v0/charges/", "charges", charges, billing=True),
    Route("GET", "/v1/invoices/", "invoices", invoices, billing=True),
    Route("GET", "/v0/gpu_names/unique/", "gpu_names", gpu_names, public=True),
]
