"""Instances through the unmodified Fabric: commands, files, keys, and the jobs that outlive a connection."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path

import paramiko
import psutil
import pytest

from tests.sandbox.kit import QUIET, READY, RTX_4090, Cloud, gone, job_lines, make_key, wait_for


def test_commands(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    for name in ("VAST_API_KEY", "BRUNO_HOME", "ANTHROPIC_API_KEY", "HTTPS_PROXY", "HF_TOKEN"):
        monkeypatch.setenv(name, "leaks")
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        assert c.run("cat ~/.vast_containerlabel", **QUIET).stdout == f"C.{instance}\n"
        assert (
            c.run("echo out; echo err >&2; exit 3", **QUIET).__dict__.items()
            >= {
                "stdout": "out\n",
                "stderr": "err\n",
                "exited": 3,
            }.items()
        )
        environment = dict(line.split("=", 1) for line in c.run("env", **QUIET).stdout.splitlines())
        assert "leaks" not in environment.values()
        home = str(cloud.home(instance))
        assert environment["HOME"] == environment["PWD"] == home
        assert environment["WORKSPACE"] == f"{home}/workspace"
        assert environment["PATH"].startswith(f"{Path(home).parent}/bin:")
        assert not [name for name in environment if name.startswith(("BRUNO", "VAST"))]
        assert c.run("wc -c < /dev/null; head -c 3000000 /dev/zero | wc -c", **QUIET).stdout == "0\n3000000\n"
        assert c.run("kill -9 $$", **QUIET).exited == -1
        assert c.run("sleep 0.3 & echo early", **QUIET).stdout == "early\n"
        assert "/dev/pts/" in c.run("tty", pty=True, **QUIET).stdout
        assert c.run("echo $TERM; exit 4", pty=True, **QUIET).exited == 4
        assert c.run("bash -lc 'command -v nvidia-smi'", **QUIET).stdout.startswith(f"{Path(home).parent}/bin/")


def test_python_is_the_sandboxs_with_packages_but_without_bruno(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        said = c.run('python3 -c "import sys, psutil, numpy; print(sys.prefix, sys.version_info[:2])"', **QUIET)
        assert said.exited == 0, said.stderr
        import sys

        assert said.stdout.strip() == f"{cloud.home(instance).parent}/venv {sys.version_info[:2]}"
        assert "No module named 'bruno'" in c.run('python3 -c "import bruno"', **QUIET).stderr


def test_pip_on_an_instance_changes_only_that_instance(cloud: Cloud, tmp_path: Path):
    pytest.importorskip("pip")
    wheel = tmp_path / "bruno-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bruno/__init__.py", "WHERE = __file__\n")
        info = "bruno-9.9.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bruno\nVersion: 9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.put(str(wheel), f"workspace/{wheel.name}")
        said = c.run(f"pip install --no-index --no-deps $WORKSPACE/{wheel.name}", **QUIET)
        assert said.exited == 0, said.stderr
        where = c.run('python3 -c "import bruno; print(bruno.WHERE)"', **QUIET).stdout
        assert where.startswith(f"{cloud.home(instance).parent}/venv/")
        assert "outside environment" in c.run("pip uninstall -y psutil", **QUIET).stdout
    import bruno

    assert not hasattr(bruno, "WHERE")
    assert Path(psutil.__file__).exists()


def test_gpu_tool_is_plausible_and_says_what_it_is(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        query = "nvidia-smi --query-gpu=name,memory.used,memory.total,utilization.gpu --format=csv,noheader,nounits"
        name, used, total, busy = c.run(query, **QUIET).stdout.strip().split(", ")
        assert (name, total) == ("NVIDIA H200", "143771")
        assert int(used) < 100
        assert 0 <= int(busy) <= 100
        c.run(
            "setsid -f python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)' > /dev/null 2>&1", **QUIET
        )
        apps = "until nvidia-smi --query-compute-apps=used_memory --format=csv,noheader,nounits | grep -q '^[2-9]..$'; do :; done"
        assert c.run(apps, timeout=30, **QUIET).exited == 0
        # the process is seen while it still fills its memory, so the sum is waited for, not read once
        total_used = "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits"
        assert c.run(f"until [ $({total_used}) -gt 250 ]; do :; done", timeout=30, **QUIET).exited == 0
        assert "EMULATED" in c.run("nvidia-smi", **QUIET).stdout
        assert c.run("nvidia-smi --query-gpu=colour --format=csv", **QUIET).exited == 2
        assert c.run("df -B1 --output=avail $WORKSPACE | tail -1", **QUIET).stdout.strip().isdigit()


def test_files(cloud: Cloud, tmp_path: Path):
    instance = cloud.ready()
    blob, back = tmp_path / "blob", tmp_path / "back"
    blob.write_bytes(os.urandom(3_000_000))
    with cloud.connect(instance) as c:
        sftp = c.sftp()
        assert sftp.normalize(".") == str(cloud.home(instance))
        c.put(str(blob), "workspace/blob")
        assert (cloud.home(instance) / "workspace/blob").read_bytes() == blob.read_bytes()
        with (
            sftp.open("workspace/blob", "rb") as remote,
            back.open("wb") as local,
        ):  # the second half first, then resume
            remote.seek(1_500_000)
            local.seek(1_500_000)
            local.write(remote.read())
            remote.seek(0)
            local.seek(0)
            local.write(remote.read(1_500_000))
        assert back.read_bytes() == blob.read_bytes()
        with sftp.open("workspace/blob", "ab") as remote:
            remote.write(b"more")
        assert sftp.stat("workspace/blob").st_size == 3_000_004
        sftp.mkdir("workspace/d")
        sftp.rename("workspace/blob", "workspace/d/blob")
        sftp.chmod("workspace/d/blob", 0o600)
        assert sftp.listdir("workspace/d") == ["blob"]
        sftp.remove("workspace/d/blob")
        with pytest.raises(FileNotFoundError):
            sftp.stat("workspace/d/blob")


def test_only_root_with_an_attached_key_gets_in(cloud: Cloud, tmp_path: Path):
    instance = cloud.ready()
    stranger, public = make_key(tmp_path, "stranger")
    with pytest.raises(paramiko.AuthenticationException):
        cloud.connect(instance, key_filename=str(stranger)).open()
    cloud.vast.attach_ssh(instance, public)
    with cloud.connect(instance, key_filename=str(stranger)) as c:
        assert c.run("true", **QUIET).ok
    with cloud.connect(instance) as c:
        c.user = "somebody"
        with pytest.raises(paramiko.AuthenticationException):
            c.open()


def test_ssh_answers_when_it_is_up_and_not_before(cloud: Cloud):
    instance = cloud.rent()
    with pytest.raises(paramiko.SSHException, match="banner"):
        cloud.connect(instance, proxy=True).open()
    cloud.control.advance(READY - 0.5)
    assert cloud.vast.show_instance(instance)["actual_status"] == "running"
    with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
        cloud.connect(instance).open()
    cloud.control.advance(0.5)
    for proxy in (False, True):
        with cloud.connect(instance, proxy=proxy) as c:
            assert c.run("true", **QUIET).ok


def test_a_proxy_only_instance_has_no_direct_port(cloud: Cloud):
    instance = cloud.ready(direct=False)
    assert cloud.vast.show_instance(instance)["ports"] == {}
    with cloud.connect(instance, proxy=True) as c:
        assert c.run("true", **QUIET).ok


def test_a_job_survives_the_connection_and_keeps_its_exit_code(cloud: Cloud):
    instance = cloud.ready()
    job = cloud.home(instance) / "workspace/job"
    with cloud.connect(instance) as c:
        assert c.run(job_lines("while [ ! -e $WORKSPACE/go ]; do sleep 0.02; done; echo done; (exit 7)"), **QUIET).ok
        assert c.run(job_lines("true"), **QUIET).exited != 0, "the lock holds a second launch off"
    pid = int(wait_for(job / "pid"))
    assert psutil.pid_exists(pid)
    with cloud.connect(instance) as c:
        c.run("touch $WORKSPACE/go", **QUIET)
    assert wait_for(job / "exit") == "7\n"
    assert (job / "log").read_text() == "done\n"


def test_a_foreground_command_outlives_its_client_and_a_terminal_does_not(cloud: Cloud):
    instance = cloud.ready()
    workspace = cloud.home(instance) / "workspace"
    pids = []
    for name, terminal in (("plain", False), ("terminal", True)):
        c = cloud.connect(instance)
        c.open()
        channel = c.transport.open_session()
        if terminal:
            channel.get_pty()
        channel.exec_command(
            f"echo $$ > $WORKSPACE/{name}.part; mv $WORKSPACE/{name}.part $WORKSPACE/{name}; exec sleep 300"
        )
        pids.append(int(wait_for(workspace / name)))
        c.transport.close()
    assert gone(pids[1])
    assert psutil.Process(pids[0]).is_running()


def test_signals_reach_the_process(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.open()
        channel = c.transport.open_session()
        channel.exec_command("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.02; done")
        assert channel.recv(6) == b"ready\n"
        message = paramiko.Message()
        message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
        message.add_int(channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("TERM")
        c.transport._send_user_message(message)
        assert channel.recv(10) == b"caught\n"
        assert channel.recv_exit_status() == 5


def test_stop_ends_every_process_of_that_instance_alone(cloud: Cloud):
    mine, other = cloud.ready(), cloud.ready(RTX_4090)
    pids = {}
    for instance in (mine, other):
        with cloud.connect(instance) as c:
            c.run(job_lines("env -i setsid sleep 300 & sleep 301 & echo > $WORKSPACE/job/up; wait"), **QUIET)
        job = cloud.home(instance) / "workspace/job"
        wait_for(job / "up")
        leader = psutil.Process(int(wait_for(job / "pid")))
        pids[instance] = [*(child.pid for child in leader.children(recursive=True)), leader.pid]
    c = cloud.connect(mine)
    c.open()
    cloud.vast.stop_instance(mine)
    assert psutil.Process(pids[mine][-1]).is_running()
    cloud.control.advance(1.0)
    assert all(gone(pid) for pid in pids[mine])
    assert all(psutil.Process(pid).is_running() for pid in pids[other])
    with pytest.raises((EOFError, OSError, paramiko.SSHException)):
        c.run("true", **QUIET)
    cloud.control.advance(1.0)
    assert (cloud.home(mine) / "workspace/job/pid").exists(), "a stopped instance keeps its disk"
    cloud.vast.destroy_instance(other)
    assert all(gone(pid) for pid in pids[other])
    assert not cloud.home(other).parent.exists()
    assert cloud.home(mine).exists()


def test_onstart_runs_at_every_container_start(cloud: Cloud):
    instance = cloud.ready(onstart_cmd="echo $CONTAINER_ID $FOO >> ~/starts", env={"FOO": "bar", "-p 80:80": "1"})
    starts = cloud.home(instance) / "starts"
    assert wait_for(starts) == f"{instance} bar\n"
    starts.unlink()
    with cloud.connect(instance) as c:
        c.run(job_lines("sleep 300"), **QUIET)
        pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
    cloud.vast.reboot_instance(instance)
    assert gone(pid)
    cloud.control.advance(2.5)
    assert wait_for(starts) == f"{instance} bar\n"


def test_destroy_follows_no_link_out_of_the_instance(cloud: Cloud, tmp_path: Path):
    instance = cloud.ready()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    (cloud.home(instance) / "workspace/link").symlink_to(precious)
    cloud.vast.destroy_instance(instance)
    assert (precious / "file").read_text() == "keep"


def test_a_killed_job_is_seen_as_killed(cloud: Cloud):
    instance = cloud.ready()
    with cloud.connect(instance) as c:
        c.run(job_lines("sleep 300"), **QUIET)
        pid = int(wait_for(cloud.home(instance) / "workspace/job/pid"))
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert not (cloud.home(instance) / "workspace/job/exit").exists()
