"""Every fault of the menu, seen through the unmodified SDK or Fabric."""

from __future__ import annotations

import threading
from pathlib import Path

import paramiko
import pytest
import requests

from bruno.errors import InputError
from bruno.sandbox import FaultKind
from tests.sandbox.kit import H200, QUIET, READY, RTX_4090, Cloud, gone, job_lines, wait_for

WRONG_ANSWERS = [
    ("rate_limit_text", None, 429, "API requests too frequent", "text/plain"),
    ("rate_limit_json", None, 429, '"detail": "API requests too frequent', "application/json"),
    ("search_quota", None, 429, "search_quota_exceeded", "application/json"),
    ("server_error", None, 502, "<html>", "text/html"),
    ("server_error", 500, 500, "<html>", "text/html"),
    ("refused", "whatever words", 400, "whatever words", "application/json"),
]


@pytest.mark.parametrize(("kind", "value", "status", "text", "content_type"), WRONG_ANSWERS)
def test_wrong_answers(cloud: Cloud, kind: str, value: int | str | None, status: int, text: str, content_type: str):
    cloud.control.order(kind, operation="search", times=2, value=value)
    assert cloud.vast.show_instances() == [], "another operation is not touched"
    for _ in range(2):
        with pytest.raises(requests.HTTPError) as refused:
            cloud.vast.search_offers("num_gpus=1")
        response = refused.value.response
        assert (response.status_code, response.headers["Content-Type"].split(";")[0]) == (status, content_type)
        assert text in response.text
    assert cloud.vast.search_offers("num_gpus=1")


def test_the_acts_are_written_down_and_looking_is_none(cloud: Cloud):
    before = len(cloud.control.acts())  # the key that these tests log in with
    cloud.vast.show_instances()
    cloud.vast.search_offers("num_gpus=1")
    assert len(cloud.control.acts()) == before
    instance = cloud.ready()
    cloud.vast.stop_instance(instance)
    cloud.control.order("server_error", operation="destroy")
    with pytest.raises(requests.HTTPError):
        cloud.vast.destroy_instance(instance)
    with pytest.raises(requests.HTTPError):
        cloud.vast.destroy_instance(1)  # refused, and written down all the same
    acts = cloud.control.acts()[before:]
    assert [act["operation"] for act in acts] == ["create", "stop", "destroy"]  # the 502 came before any work was done
    assert acts[1]["path"] == {"id": str(instance)}


def test_reply_lost_after_the_create_was_done(cloud: Cloud):
    cloud.control.order("reply_lost", operation="create")
    with pytest.raises(requests.ConnectionError):
        cloud.rent(label="only-once")
    assert [row["label"] for row in cloud.vast.show_instances()] == ["only-once"]
    with pytest.raises(requests.HTTPError, match="410"):
        cloud.rent(label="only-once")


@pytest.mark.parametrize("operation", ["stop", "destroy", "label"])
def test_reply_lost_of_other_acts(cloud: Cloud, operation: str):
    instance = cloud.ready()
    acts = {
        "stop": lambda: cloud.vast.stop_instance(instance),
        "destroy": lambda: cloud.vast.destroy_instance(instance),
        "label": lambda: cloud.vast.label_instance(instance, "new"),
    }
    cloud.control.order("reply_lost", operation=operation)
    with pytest.raises(requests.ConnectionError):
        acts[operation]()
    row = cloud.vast.show_instance(instance)
    done = {
        "stop": lambda: row["intended_status"] == "stopped",
        "destroy": lambda: row is None,
        "label": lambda: row["label"] == "new",
    }
    assert done[operation]()


def test_hang(cloud: Cloud):
    cloud.control.order("hang", operation="list", value=5)
    cloud.vast.client.timeout = 0.3
    with pytest.raises(requests.Timeout):
        cloud.vast.show_instances()
    assert cloud.vast.show_instances() == [], "one slow answer does not hold up the others"


@pytest.mark.parametrize("status", [400, 404, 410])
def test_no_such_ask(cloud: Cloud, status: int):
    cloud.control.order("no_such_ask", value=status)
    with pytest.raises(requests.HTTPError) as refused:
        cloud.rent()
    assert refused.value.response.status_code == status
    assert "no_such_ask" in refused.value.response.text
    assert cloud.vast.show_instances() == []


@pytest.mark.parametrize("word", ["insufficient_credit", "missing_billing", "spend_rate_limit"])
def test_no_credit(cloud: Cloud, word: str):
    cloud.control.order("no_credit", value=word)
    with pytest.raises(requests.HTTPError) as refused:
        cloud.rent()
    assert (refused.value.response.status_code, refused.value.response.json()["error"]) == (400, word)


def test_success_that_never_materialises(cloud: Cloud):
    cloud.control.order("never_materialises")
    instance = cloud.rent()
    cloud.control.advance(60)
    assert cloud.vast.show_instance(instance) is None
    assert cloud.vast.show_instances() == []


def test_refused_but_created(cloud: Cloud):
    cloud.control.order("refused_but_created")
    answer = cloud.vast.create_instance(H200, image="i", disk=100, ssh=True, label="left-over")
    assert answer["success"] is False
    cloud.control.advance(3600)
    row = cloud.vast.show_instance(answer["new_contract"])
    assert (row["cur_state"], row["actual_status"], row["label"]) == ("stopped", "exited", "left-over")
    assert cloud.vast.show_user()["credit"] == pytest.approx(100 - row["storage_total_cost"])


def test_list_gone_and_list_missing_a_row(cloud: Cloud):
    ids = [cloud.control.seed(RTX_4090, running=False) for _ in range(3)]
    cloud.control.order("list_gone")
    with pytest.raises(requests.HTTPError) as refused:
        cloud.vast.show_instances()
    assert refused.value.response.status_code == 410
    cloud.control.order("list_missing_row", instance=ids[1])
    assert [row["id"] for row in cloud.vast.show_instances()] == [ids[0], ids[2]]
    assert cloud.vast.show_instance(ids[1])["id"] == ids[1]
    assert [row["id"] for row in cloud.vast.show_instances()] == ids


def test_null_status_for_some_readings(cloud: Cloud):
    instance = cloud.ready()
    cloud.control.order("null_status", times=3, instance=instance)
    seen = [cloud.vast.show_instance(instance)["actual_status"] for _ in range(5)]
    assert seen == [None, None, None, "running", "running"]


def test_ports_null_while_running(cloud: Cloud):
    instance = cloud.ready()
    cloud.control.order("ports_null", times=None)
    for _ in range(3):
        row = cloud.vast.show_instance(instance)
        assert (row["actual_status"], row["ports"]) == ("running", None)
    cloud.control.clear_faults()
    assert cloud.vast.show_instance(instance)["ports"]["22/tcp"]


def test_slow_loading(cloud: Cloud):
    cloud.control.order("slow_loading", value=600)
    instance = cloud.rent()
    cloud.control.advance(590)
    row = cloud.vast.show_instance(instance)
    assert row["actual_status"] == "loading"
    assert "98%" in row["status_msg"]
    cloud.control.advance(20)
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"


def test_oci_failure(cloud: Cloud):
    cloud.control.order("oci_failure")
    instance = cloud.rent()
    cloud.control.advance(3600)
    row = cloud.vast.show_instance(instance)
    assert row["actual_status"] == "created"
    assert "OCI runtime create failed" in row["status_msg"]


def test_late_ssh(cloud: Cloud):
    cloud.control.order("late_ssh", value=30)
    instance = cloud.ready()
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"
    with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
        cloud.connect(instance).open()
    cloud.control.advance(30)
    cloud.connect(instance).open()


def test_key_lag(cloud: Cloud):
    cloud.control.order("key_lag", value=20)
    instance = cloud.ready()
    with pytest.raises(paramiko.AuthenticationException):
        cloud.connect(instance).open()
    cloud.control.advance(20)
    cloud.connect(instance).open()


def test_gpu_taken_at_start(cloud: Cloud):
    instance = cloud.ready()
    cloud.vast.stop_instance(instance)
    cloud.control.advance(2)
    cloud.control.order("gpu_taken", instance=instance)
    assert cloud.vast.start_instance(instance)["success"] is True
    cloud.control.advance(86_400)
    row = cloud.vast.show_instance(instance)
    assert (row["intended_status"], row["next_state"], row["cur_state"], row["actual_status"]) == (
        "running",
        "running",
        "stopped",
        "exited",
    )


@pytest.mark.parametrize("moved", [True, False])
def test_port_change_on_start(cloud: Cloud, moved: bool):
    instance = cloud.ready()
    before = cloud.vast.show_instance(instance)["ports"]["22/tcp"][0]["HostPort"]
    cloud.vast.stop_instance(instance)
    cloud.control.advance(2)
    if moved:
        cloud.control.order("port_change", instance=instance)
    cloud.vast.start_instance(instance)
    cloud.control.advance(READY)
    after = cloud.vast.show_instance(instance)["ports"]["22/tcp"][0]["HostPort"]
    assert (after != before) is moved
    with cloud.connect(instance) as c:
        assert c.run("true", **QUIET).ok


def test_accept_then_close(cloud: Cloud):
    instance = cloud.ready()
    cloud.control.order("accept_then_close", times=2, instance=instance)
    for _ in range(2):
        with pytest.raises((paramiko.SSHException, EOFError, ConnectionError)):
            cloud.connect(instance).open()
    cloud.connect(instance).open()


def test_host_key_change(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.open()
        first = c.transport.get_remote_server_key()
    with cloud.connect(instance, proxy=True) as c:
        c.open()
        assert c.transport.get_remote_server_key() == first
    cloud.control.order("host_key_change", instance=instance)
    with cloud.connect(instance) as c:
        port = cloud.vast.show_instance(instance)["ports"]["22/tcp"][0]["HostPort"]
        c.client.get_host_keys().add(f"[127.0.0.1]:{port}", first.get_name(), first)
        with pytest.raises(paramiko.BadHostKeyException):
            c.open()


def test_dropped_connections(cloud: Cloud):
    instance = cloud.ready()
    c = cloud.connect(instance)
    c.open()
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(c.run("touch $WORKSPACE/began; sleep 30", **QUIET).exited)
        except (EOFError, OSError, paramiko.SSHException) as error:
            outcome.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    wait_for(cloud.home(instance) / "workspace/began")
    cloud.control.order("drop_ssh", instance=instance)
    worker.join(20)
    assert outcome == [-1] or isinstance(outcome[0], Exception)
    with cloud.connect(instance) as again:
        assert again.run("true", **QUIET).ok


@pytest.mark.parametrize("kind", ["outbid", "credit"])
def test_stopped_by_the_provider_looks_like_a_stop(cloud: Cloud, kind: str):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.run(job_lines("sleep 300"), **QUIET)
        pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
    cloud.control.order(kind, instance=instance if kind == "outbid" else None)
    assert gone(pid)
    cloud.control.advance(1)
    row = cloud.vast.show_instance(instance)
    states = {row["intended_status"], row["cur_state"], row["next_state"]}
    assert (states, row["actual_status"], row["ports"]) == ({"stopped"}, "exited", None)


@pytest.mark.parametrize("shown", ["offline", "unknown"])
def test_offline_and_back(cloud: Cloud, shown: str):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.run(job_lines("sleep 300"), **QUIET)
        pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
    credit = cloud.vast.show_user()["credit"]
    cloud.control.order("offline", instance=instance, value=shown)
    cloud.control.advance(3600)
    row = cloud.vast.show_instance(instance)
    assert (row["actual_status"], row["intended_status"], row["ports"]) == (shown, "running", None)
    assert cloud.vast.show_user()["credit"] == credit
    with pytest.raises((paramiko.SSHException, OSError)):
        cloud.connect(instance, proxy=True).open()
    cloud.control.order("online", instance=instance)
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"
    with cloud.connect(instance) as c:
        assert c.run(f"kill -0 {pid}", **QUIET).ok, "the machine ran on while nobody could reach it"


def test_container_exit(cloud: Cloud):
    instance = cloud.ready()
    cloud.control.order("container_exit", instance=instance)
    row = cloud.vast.show_instance(instance)
    assert (row["actual_status"], row["intended_status"], row["ports"]) == ("exited", "running", None)


def test_out_of_memory(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        assert c.run("dmesg", **QUIET).stdout == "", "this machine's own kernel log is not the instance's"
        hungry = "python3 -c 'x = bytearray(200_000_000); print(1, flush=True); import time; time.sleep(300)'"
        c.run(job_lines(f"{hungry}; (exit $?)"), **QUIET)
        c.run("until grep -q 1 $WORKSPACE/job/log; do sleep 0.02; done", timeout=20, **QUIET)
        cloud.control.order("out_of_memory", instance=instance)
        assert wait_for(cloud.home(instance) / "workspace/job/exit") == "137\n"
        assert "Out of memory: Killed process" in c.run("dmesg", **QUIET).stdout


def test_clock_jump(cloud: Cloud):
    instance = cloud.ready()
    first = cloud.vast.show_instance(instance)
    cloud.control.order("clock_jump", value=-7200)
    row = cloud.vast.show_instance(instance)
    assert (row["actual_status"], row["start_date"]) == ("running", first["start_date"])
    cloud.control.order("clock_jump", value=7200 + 86_400 * 31)
    with pytest.raises(requests.HTTPError, match="400"):
        cloud.vast.start_instance(instance)


def test_disk_full(cloud: Cloud, tmp_path):
    instance = cloud.ready()
    writer = "import time, os\nf = open('grow', 'wb', 0)\nwhile 1: f.write(b'x' * 4096); time.sleep(0.001)"
    with cloud.connect(instance) as c:
        c.run(f'setsid -f python3 -c "{writer}" > $WORKSPACE/log 2>&1 < /dev/null', **QUIET)
        cloud.control.order("disk_full", instance=instance, value=1_048_576)
        assert c.run("df $WORKSPACE | tail -1", **QUIET).stdout.split()[-2] == "100%"
        late = c.run("head -c 4000000 /dev/zero > big", **QUIET)
        assert late.exited != 0
        assert "File too large" in late.stderr
        (tmp_path / "blob").write_bytes(b"x" * 2_000_000)
        with pytest.raises(OSError, match=r"No space left|size mismatch"):
            c.put(str(tmp_path / "blob"), "blob")
        c.run("until grep -q 'File too large' $WORKSPACE/log; do sleep 0.05; done", timeout=20, **QUIET)
        cloud.control.order("disk_freed", instance=instance)
        assert c.run("head -c 4000000 /dev/zero > big; df . | tail -1", **QUIET).ok


SENSELESS = [
    {"kind": "offline"},
    {"kind": "offline", "instance": 1},
    {"kind": "clock_jump", "value": "soon"},
    {"kind": "container_exit", "instance": None},
]


@pytest.mark.parametrize("fault", SENSELESS, ids=str)
def test_senseless_orders_are_refused(cloud: Cloud, fault: dict):
    with pytest.raises(InputError):
        cloud.control.order(**fault)
    assert cloud.control.faults() == []


def test_a_foreign_instance_is_there_and_stays(cloud: Cloud):
    foreign = cloud.control.seed(RTX_4090, label="somebody's", running=True)
    mine = cloud.ready()
    assert [row["id"] for row in cloud.vast.show_instances()] == [foreign, mine]
    with cloud.connect(foreign) as c:
        assert c.run("cat ~/.vast_containerlabel", **QUIET).stdout == f"C.{foreign}\n"
        c.run(job_lines("sleep 300"), **QUIET)
    cloud.vast.stop_instance(mine)
    cloud.vast.destroy_instance(mine)
    row = next(i for i in cloud.control.overview()["instances"] if i["id"] == foreign)
    assert (row["stage"], row["generation"], row["foreign"]) == ("running", 1, True)
    assert len(row["processes"]) >= 1


def test_every_fault_is_tested_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind.value for kind in FaultKind if f'"{kind.value}"' not in text] == []
