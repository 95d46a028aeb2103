"""The sandbox as a detached process: found, started once, killed, taken up again, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bruno.errors import InputError
from bruno.sandbox import (
    Clock,
    Sandbox,
    SandboxControl,
    SandboxFailed,
    SandboxInfo,
    ensure_running,
    running,
    serve,
    stop,
)
from bruno.sandbox.state import State, StateError, load, save
from tests.sandbox.kit import H200, QUIET, RTX_4090, Cloud, gone, job_lines, make_key, sdk, wait_for


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home folder whose sandbox does not outlive the test."""
    folder = tmp_path / "home"
    yield folder
    stop(folder, stop_instances=True)


def cloud_of(info: SandboxInfo, tmp_path: Path) -> Cloud:
    key, public = make_key(tmp_path)
    cloud = Cloud(info, SandboxControl(info.url, info.admin_token), sdk(info), key, public)
    cloud.vast.create_ssh_key(public)
    return cloud


def test_a_killed_sandbox_comes_back_with_its_instances_and_their_jobs(home: Path, tmp_path: Path):
    consoles: list[SandboxInfo] = []
    threads = [threading.Thread(target=lambda: consoles.append(ensure_running(home))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(consoles) == 3
    assert len({info.pid for info in consoles}) == 1
    info = consoles[0]
    assert (info.state, info.pid != os.getpid()) == (home / "sandbox", True)
    assert psutil.Process(info.pid).ppid() != os.getpid() or os.getsid(info.pid) == info.pid
    assert {name: (info.state / name).stat().st_mode & 0o777 for name in ("server.json", "state.json")} == {
        "server.json": 0o600,
        "state.json": 0o600,
    }
    environment = psutil.Process(info.pid).environ()
    assert not [name for name in environment if name.startswith(("VAST", "BRUNO", "ANTHROPIC"))]

    cloud = cloud_of(info, tmp_path)
    foreign = cloud.control.seed(RTX_4090, label="somebody's", running=False)
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.open()
        host_key = c.transport.get_remote_server_key()
        c.run(job_lines("while [ ! -e $WORKSPACE/go ]; do sleep 0.05; done"), **QUIET)
    pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
    row = cloud.vast.show_instance(instance)
    os.kill(info.pid, signal.SIGKILL)
    assert gone(info.pid)
    assert running(home) is None
    assert psutil.Process(pid).is_running()

    again = ensure_running(home)
    assert again.pid != info.pid
    assert (again.url, again.api_key) == (info.url, info.api_key)
    back = cloud.vast.show_instance(instance)
    assert (back["actual_status"], back["ssh_port"], back["ports"]) == ("running", row["ssh_port"], row["ports"])
    assert {i["id"] for i in cloud.vast.show_instances()} == {foreign, instance}
    assert pid in next(i for i in cloud.control.overview()["instances"] if i["id"] == instance)["processes"]
    with cloud.connect(instance) as c:
        c.open()
        assert c.transport.get_remote_server_key() == host_key
        c.run("touch $WORKSPACE/go", **QUIET)
    assert wait_for(cloud.home(instance) / "workspace/job/exit") == "0\n"

    with cloud.connect(instance) as c:
        c.run("rm -r $WORKSPACE/job", **QUIET)
        c.run(job_lines("sleep 300"), **QUIET)
    pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
    report = stop(home)
    assert report is not None
    assert next(i for i in report["instances"] if i["id"] == instance)["stage"] == "running"
    assert running(home) is None
    assert psutil.Process(pid).is_running(), "ending the sandbox alone ends no job"
    third = ensure_running(home)
    assert third.url == info.url
    stop(home, stop_instances=True)
    assert gone(pid)
    assert stop(home) is None


def test_a_sandbox_that_cannot_start_says_why(home: Path):
    (home / "sandbox").mkdir(parents=True)
    (home / "sandbox/state.json").write_text('{"version": 9}')
    with pytest.raises(SandboxFailed, match=r"state\.json cannot be read: version.*Its log is"):
        ensure_running(home)
    assert json.loads((home / "sandbox/state.json").read_text()) == {"version": 9}


def test_a_folder_that_cannot_be_used(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use"):
        ensure_running(tmp_path / "file")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "192.168.1.2"])
def test_it_listens_on_loopback_and_nowhere_else(tmp_path: Path, host: str):
    with pytest.raises(InputError, match=r"127\.0\.0\.1 only"):
        serve(tmp_path / "s", host=host)
    assert not (tmp_path / "s").exists()


def test_every_port_is_on_loopback(cloud: Cloud):
    cloud.ready()
    listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_folder_is_served_once(tmp_path: Path):
    from bruno.sandbox import launch

    (tmp_path / "twice").mkdir()
    refused = pytest.raises(InputError, match="Another sandbox serves")
    with launch.serving(tmp_path / "twice"), refused, launch.serving(tmp_path / "twice", patience=0):
        pass
    with launch.serving(tmp_path / "twice", patience=0):
        pass


async def test_it_ends_when_idle_but_not_while_an_instance_runs(tmp_path: Path):
    async with Sandbox(tmp_path / "idle", clock=Clock.frozen(), idle_after=0.0) as sandbox:
        await sandbox.ended.wait()
    async with Sandbox(tmp_path / "busy", clock=Clock.frozen(), idle_after=0.0) as sandbox:
        sandbox.touch()
        await sandbox.seed(H200, label=None)
        sandbox.ended.clear()
        await sandbox.advance(1)
        await sandbox.advance(1)
        assert not sandbox.ended.is_set()


async def test_it_ends_with_its_folder_and_takes_the_jobs_along(tmp_path: Path):
    async with Sandbox(tmp_path / "gone", clock=Clock.frozen()) as sandbox:
        instance = await sandbox.seed(H200, label=None)
        folder = sandbox.folder_of(instance)
        job = subprocess.Popen(["sleep", "300"], env=folder.environment())
        (tmp_path / "gone").rename(tmp_path / "elsewhere")
        await sandbox.ended.wait()
        assert job.wait(timeout=10) == -signal.SIGKILL
    assert not (tmp_path / "gone").exists()


def test_a_crash_between_destroy_and_cleaning_up_is_cleaned_up(tmp_path: Path):
    from bruno.sandbox import running_sandbox

    with running_sandbox(tmp_path / "s", clock=Clock.frozen()) as sandbox:
        instance = sandbox.control.seed(H200)
        folder = sandbox.info.state / "instances" / str(instance)
        environment = {"SANDBOX_INSTANCE": f"{sandbox.info.state}:{instance}"}
    left = load(tmp_path / "s/state.json")
    assert left is not None
    del left.instances[instance]
    save(left, tmp_path / "s/state.json")
    orphan = subprocess.Popen(["sleep", "300"], env=environment)
    with running_sandbox(tmp_path / "s"):
        assert orphan.wait(timeout=10) == -signal.SIGKILL
        assert not folder.exists()


def test_state_is_written_whole_and_read_strictly(tmp_path: Path):
    path = tmp_path / "state.json"
    assert load(path) is None
    first = State(credit=3.5)
    save(first, path)
    assert load(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == ["state.json"]
    path.write_text(path.read_text()[:-40])
    with pytest.raises(StateError, match="Move the file away"):
        load(path)


def test_scaled_and_real_clocks_go_on_while_nothing_serves():
    clock = Clock.scaled(3600)
    assert clock.wall_seconds(7200) == 2
    again = Clock.model_validate_json(clock.model_dump_json())
    before = again.now()
    time.sleep(0.002)
    assert again.now() - before >= 7.0
    assert Clock.frozen().wall_seconds(1) is None


def test_importing_the_room_is_light():
    code = (
        "import sys, bruno.sandbox; print([m for m in ('asyncssh', 'aiohttp', 'torch', 'vastai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
