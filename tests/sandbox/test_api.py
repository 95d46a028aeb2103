"""The provider's API through the unmodified SDK: the whole life of an instance, lists, money, keys and errors."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
import requests

from tests.sandbox.kit import H200, IMAGE, RTX_4090, Cloud, make_key, sdk


def raw(
    cloud: Cloud, method: str, path: str, *, key: str | None = "", body: bytes | None = None, host: str = ""
) -> Any:
    """One request without the SDK: (status, headers, text)."""
    request = urllib.request.Request(f"{cloud.info.url}{path}", method=method, data=body)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key or cloud.info.api_key}")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_whole_life(cloud: Cloud):
    offers = cloud.vast.search_offers("gpu_name=H200 num_gpus=1 disk_space>=300", order="dph_total", storage=300)
    assert offers == sorted(offers, key=lambda o: o["dph_total"])
    assert len(offers) == 2
    offer = offers[0]
    made = cloud.vast.create_instance(
        offer["id"], image=IMAGE, disk=300, ssh=True, direct=True, label="job-1", env={"A": "b"}, cancel_unavail=True
    )
    instance = made["new_contract"]
    row = cloud.vast.show_instance(instance)
    assert row["actual_status"] is None
    assert row["ports"] is None
    assert row["ssh_port"] > 0
    assert row["dph_total"] == pytest.approx(offer["dph_total"])
    assert row["extra_env"] == {"A": "b"}
    assert row["disk_space"] == 300
    assert offer["id"] not in {o["id"] for o in cloud.vast.search_offers("gpu_name=H200 rented=false")}

    seen = []
    for _ in range(10):
        cloud.control.advance(0.5)
        status = cloud.vast.show_instance(instance)["actual_status"]
        if status not in seen[-1:]:
            seen.append(status)
    assert seen == ["created", "loading", "running"]
    row = cloud.vast.show_instance(instance)
    assert row["ports"]["22/tcp"][0]["HostPort"] == str(row["machine_dir_ssh_port"])

    assert cloud.vast.label_instance(instance, "job-2")["success"] is True
    assert cloud.vast.show_instance(instance)["label"] == "job-2"
    cloud.control.advance(3600)
    assert cloud.vast.stop_instance(instance)["success"] is True
    row = cloud.vast.show_instance(instance)
    assert (row["intended_status"], row["cur_state"], row["actual_status"]) == ("stopped", "running", "running")
    cloud.control.advance(1.5)
    row = cloud.vast.show_instance(instance)
    assert (row["intended_status"], row["cur_state"], row["actual_status"], row["ports"]) == (
        "stopped",
        "stopped",
        "exited",
        None,
    )
    assert cloud.vast.start_instance(instance)["success"] is True
    cloud.control.advance(3.5)
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"
    assert cloud.vast.reboot_instance(instance)["success"] is True
    assert cloud.vast.show_instance(instance)["actual_status"] == "rebooting"
    cloud.control.advance(2.5)
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"

    spent = 100 - cloud.vast.show_user()["credit"]
    report = cloud.vast.show_invoices_v1(charges=True, start_date="2025-12-31", end_date="2026-01-02")
    assert sum(r["amount"] for r in report["results"]) == pytest.approx(spent)
    assert spent > offer["dph_base"]
    assert report["results"][0]["source"] == f"instance-{instance}"
    assert {item["type"] for item in report["results"][0]["items"]} == {"gpu", "disk"}
    assert report["results"][0]["metadata"]["label"] == "job-2"

    assert cloud.home(instance).exists()
    assert cloud.vast.destroy_instance(instance)["success"] is True
    assert cloud.vast.show_instance(instance) is None
    assert cloud.vast.show_instances() == []
    assert not cloud.home(instance).exists()


def test_no_instance(cloud: Cloud):
    for act in (cloud.vast.destroy_instance, cloud.vast.stop_instance, cloud.vast.reboot_instance):
        with pytest.raises(requests.HTTPError) as refused:
            act(12345)
        assert refused.value.response.status_code == 404
        assert refused.value.response.json()["error"] == "no_such_instance"
        assert refused.value.response.json()["msg"] == "Instance 12345 not found."


def test_the_list_has_pages_and_filters(cloud: Cloud):
    ids = [cloud.control.seed(RTX_4090, label=f"n{n % 2}", running=n == 0) for n in range(28)]
    assert [row["id"] for row in cloud.vast.show_instances()] == ids
    first = cloud.vast.show_instances_v1({"limit": 25, "order_by": [{"col": "id", "dir": "desc"}]})
    assert [row["id"] for row in first["instances"]] == ids[::-1][:25]
    assert (first["instances_found"], first["total_instances"]) == (28, 28)
    second = cloud.vast.show_instances_v1(
        {"limit": 25, "order_by": [{"col": "id", "dir": "desc"}], "after_token": first["next_token"]}
    )
    assert [row["id"] for row in second["instances"]] == ids[::-1][25:]
    assert second["next_token"] is None
    running = cloud.vast.show_instances_v1({"select_filters": {"actual_status": {"in": ["running"]}}})
    assert [row["id"] for row in running["instances"]] == ids[:1]
    labelled = cloud.vast.show_instances_v1({"select_filters": {"label": {"eq": "n1"}}, "select_cols": ["id", "label"]})
    assert labelled["instances"][0] == {"id": ids[1], "label": "n1"}
    assert labelled["label_counts"] == {"n1": 14}


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"select_filters": {"colour": {"eq": 1}}}, "invalid_request"),
        ({"select_filters": {"id": {"about": 1}}}, "invalid_request"),
        ({"select_cols": ["colour"]}, "invalid_request"),
        ({"after_token": "bm9uc2Vuc2U="}, "invalid_token"),
    ],
)
def test_bad_list_requests(cloud: Cloud, params: dict, error: str):
    cloud.control.seed(RTX_4090, running=False)
    with pytest.raises(requests.HTTPError) as refused:
        cloud.vast.show_instances_v1(params)
    assert (refused.value.response.status_code, refused.value.response.json()["error"]) == (400, error)


def test_the_old_list_is_gone(cloud: Cloud):
    status, _, text = raw(cloud, "GET", "/api/v0/instances/")
    assert (status, json.loads(text)["error"]) == (410, "deprecated_endpoint")


def test_keys(cloud: Cloud, tmp_path):
    _, other = make_key(tmp_path, "other")
    instance = cloud.ready()
    assert [k["public_key"] for k in cloud.vast.show_ssh_keys()] == [cloud.public_key]
    cloud.vast.attach_ssh(instance, other + "\n")
    assert (cloud.home(instance) / ".ssh/authorized_keys").read_text().splitlines() == [cloud.public_key, other]
    late = cloud.vast.create_ssh_key(other)["key"]
    cloud.vast.delete_ssh_key(late["id"])
    keys = json.loads(cloud.vast.client.get(f"/instances/{instance}/ssh/").json()["ssh_keys"])
    cloud.vast.detach_ssh(instance, keys[0]["id"])
    assert (cloud.home(instance) / ".ssh/authorized_keys").read_text().splitlines() == [other]
    with pytest.raises(requests.HTTPError):
        cloud.vast.create_ssh_key("/home/me/.ssh/id_ed25519.pub")


def test_wrong_keys(cloud: Cloud):
    stranger = sdk(cloud.info, api_key="0" * 64)
    with pytest.raises(requests.HTTPError) as refused:
        stranger.show_instances()
    assert refused.value.response.status_code == 401
    assert refused.value.response.json() == {"success": False, "error": "auth_error", "msg": "Invalid user key"}
    with pytest.raises(requests.HTTPError) as refused:
        stranger.show_invoices_v1(charges=True)
    assert refused.value.response.status_code == 404
    assert raw(cloud, "GET", "/api/v0/users/current", key=None)[0] == 403
    assert raw(cloud, "GET", "/api/v0/gpu_names/unique/", key=None)[0] == 200


def test_the_api_key_does_not_open_the_admin_side(cloud: Cloud):
    for method, path in [("POST", "faults"), ("GET", "overview"), ("POST", "shutdown"), ("POST", "instances")]:
        assert raw(cloud, method, f"/sandbox/{path}", body=b"{}" if method == "POST" else None)[0] == 401
        assert raw(cloud, method, f"/sandbox/{path}", key=None)[0] == 401


def test_a_browser_led_here_under_another_name_is_turned_away(cloud: Cloud):
    assert raw(cloud, "GET", "/api/v0/gpu_names/unique/", host="evil.example:80")[0] == 421


def test_content_type_is_exactly_json(cloud: Cloud):
    assert raw(cloud, "GET", "/api/v0/users/current")[1]["Content-Type"] == "application/json"
    assert raw(cloud, "PUT", "/api/v0/asks/1/", body=b"{}")[1]["Content-Type"] == "application/json"


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b'{"price": []}'])
def test_bad_bodies_are_refused(cloud: Cloud, body: bytes):
    assert raw(cloud, "PUT", f"/api/v0/asks/{H200}/", body=body)[0] == 400


def test_account_logs_and_names(cloud: Cloud):
    user = cloud.vast.show_user()
    assert (user["credit"], user["can_pay"], user["ssh_key"]) == (100.0, True, cloud.public_key)
    assert "api_key" not in user
    assert "H100 SXM" in json.loads(raw(cloud, "GET", "/api/v0/gpu_names/unique/")[2])["gpu_names"]
    instance = cloud.ready()
    told = cloud.vast.logs(instance, daemon_logs=True)
    assert [line.split()[-1] for line in told.splitlines()] == [
        "provisioning",
        "created",
        "loading",
        "booting",
        "running",
    ]
    assert cloud.vast.logs(instance, daemon_logs=True, tail="2", filter="run").count("\n") == 1


def test_credit_refuses_a_create(cloud: Cloud):
    cloud.control.set_credit(0)
    with pytest.raises(requests.HTTPError) as refused:
        cloud.rent()
    assert refused.value.response.status_code == 400
    assert "Insufficient credit" in refused.value.response.text


def test_rate_limits_are_kept_on_request(tmp_path):
    from bruno.sandbox import Clock, running_sandbox

    with running_sandbox(tmp_path / "strict", clock=Clock.frozen(), rate_limits=True) as sandbox:
        vast = sdk(sandbox.info)
        vast.show_instances()
        with pytest.raises(requests.HTTPError) as refused:
            vast.show_instances()
        assert refused.value.response.status_code == 429
        sandbox.control.advance(1.0)
        assert vast.show_instances() == []


def test_ages_are_in_the_clients_time(tmp_path):
    """The SDK subtracts `start_date` from its own clock, so a sandbox in real time must agree with that."""
    from bruno.sandbox import running_sandbox

    with running_sandbox(tmp_path / "real") as sandbox:
        instance = sandbox.control.seed(RTX_4090, label="somebody's", running=False)
        assert abs(sdk(sandbox.info).show_instance(instance)["start_date"] - time.time()) < 60
