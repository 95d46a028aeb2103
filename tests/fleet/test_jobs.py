"""Launching real processes on a sandbox instance: detached, once, and told apart when they end or vanish."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from bruno.errors import InputError
from bruno.fleet import jobs
from bruno.fleet.errors import AlreadyLaunched, HostLost, TransferFailed
from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.jobs import JobPhase
from bruno.fleet.keys import KeyPair
from bruno.fleet.models import Instance
from tests.fleet.conftest import Cloud


@pytest.fixture
def folder(host: Host) -> Path:
    """The job's folder; the sandbox's files lie on this machine."""
    return Path(host.workspace()) / "job"


def until(host: Host, folder: Path, phase: JobPhase) -> jobs.JobState:
    """The state once it is `phase`; the suite's own timeout is the limit."""
    while (now := jobs.state(host, str(folder))).phase is not phase:
        time.sleep(0.02)
    return now


def sleeper(host: Host, folder: Path) -> jobs.JobState:
    return jobs.launch(host, str(folder), ["sleep", "600"])


def test_a_job_that_was_never_launched(host: Host, folder: Path) -> None:
    assert jobs.state(host, str(folder)).phase is JobPhase.ABSENT


@pytest.mark.parametrize("code", [0, 1, 3, 137])
def test_a_job_that_ends_leaves_its_exit_code_and_output(host: Host, folder: Path, code: int) -> None:
    script = 'echo "arguments: $1|$2"; echo problem >&2; exit "$3"'
    launched = jobs.launch(host, str(folder), ["bash", "-c", script, "job", "two words", "$(id)", str(code)])
    assert launched.phase in {JobPhase.RUNNING, JobPhase.FINISHED}
    ended = until(host, folder, JobPhase.FINISHED)
    assert ended.exit_code == code
    assert not ended.out_of_memory
    assert (folder / "log").read_text() == "arguments: two words|$(id)\nproblem\n"


def test_a_running_job_shows_its_own_process(host: Host, folder: Path) -> None:
    now = sleeper(host, folder)
    assert now.phase is JobPhase.RUNNING
    assert now.pid is not None
    stat = Path(f"/proc/{now.pid}/stat").read_text()
    assert "(sleep)" in stat
    assert now.started == int(stat.rpartition(") ")[2].split()[19])
    assert now.launched_at is not None


def test_a_job_outlives_the_connection(
    cloud: Cloud, machine: Instance, key: KeyPair, pins: HostKeys, host: Host, folder: Path
) -> None:
    now = sleeper(host, folder)
    cloud.control.order("drop_ssh", instance=machine.id)
    with pytest.raises(HostLost):
        jobs.state(host, str(folder))
    host.close()
    with connect(machine, key, pins, clock=cloud.time.clock, sleep=cloud.time.sleep) as again:
        assert jobs.state(again, str(folder)) == now


def test_a_second_launch_is_refused_while_running_and_after(host: Host, folder: Path) -> None:
    first = sleeper(host, folder)
    with pytest.raises(AlreadyLaunched, match="a second one beside it is refused"):
        jobs.launch(host, str(folder), ["touch", str(folder / "second")])
    assert jobs.state(host, str(folder)) == first
    assert first.pid is not None
    os.kill(first.pid, signal.SIGTERM)
    assert until(host, folder, JobPhase.FINISHED).exit_code == 143
    with pytest.raises(AlreadyLaunched):
        jobs.launch(host, str(folder), ["touch", str(folder / "second")])
    assert not (folder / "second").exists()


def test_of_launches_at_the_same_time_one_is_taken(
    cloud: Cloud, machine: Instance, key: KeyPair, pins: HostKeys, host: Host, folder: Path
) -> None:
    outcomes: list[str] = []

    def launch() -> None:
        with connect(machine, key, pins, clock=cloud.time.clock, sleep=cloud.time.sleep) as mine:
            try:
                jobs.launch(mine, str(folder), ["bash", "-c", "echo ran; sleep 600"])
                outcomes.append("launched")
            except AlreadyLaunched:
                outcomes.append("refused")

    threads = [Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["launched", "refused", "refused", "refused"]
    until(host, folder, JobPhase.RUNNING)
    assert (folder / "log").read_text() == "ran\n"


def test_a_job_killed_with_its_wrapper_is_lost(host: Host, folder: Path) -> None:
    now = sleeper(host, folder)
    wrapper = int((folder / "lock/wrapper").read_text().split()[0])
    assert now.pid is not None
    os.kill(wrapper, signal.SIGKILL)
    os.kill(now.pid, signal.SIGKILL)
    lost = until(host, folder, JobPhase.LOST)
    assert (lost.exit_code, lost.pid) == (None, now.pid)


def test_a_job_whose_wrapper_was_killed_still_runs(host: Host, folder: Path) -> None:
    now = sleeper(host, folder)
    os.kill(int((folder / "lock/wrapper").read_text().split()[0]), signal.SIGKILL)
    orphan = jobs.state(host, str(folder))
    assert (orphan.phase, orphan.pid) == (JobPhase.RUNNING, now.pid)
    with pytest.raises(AlreadyLaunched):
        jobs.launch(host, str(folder), ["true"])


def test_another_process_with_the_pid_is_not_the_job(host: Host, folder: Path) -> None:
    now = sleeper(host, folder)
    wrapper = folder / "lock/wrapper"
    os.kill(int(wrapper.read_text().split()[0]), signal.SIGKILL)
    assert now.started is not None
    (folder / "lock/job").write_text(f"{now.pid} {now.started - 1}\n")
    assert jobs.state(host, str(folder)).phase is JobPhase.LOST


def test_the_environment_travels_in_a_private_file(host: Host, folder: Path) -> None:
    secrets = {"TOKEN": 'it\'s $(secret) `x` "y"\nline two', "EMPTY": ""}
    jobs.launch(host, str(folder), ["bash", "-c", 'printf "%s|%s" "$TOKEN" "${EMPTY-unset}"; sleep 600'], env=secrets)
    lines = Path("/proc/self/cmdline")  # nothing of it may show in a process table
    commands = [path.read_bytes() for path in lines.parent.parent.glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"$(secret)" in command for command in commands)
    assert oct((folder / "lock/env").stat().st_mode)[-3:] == "600"
    assert not (folder / "env").exists()
    while not (folder / "log").stat().st_size:
        time.sleep(0.01)
    assert (folder / "log").read_text() == f"{secrets['TOKEN']}|"


@pytest.mark.parametrize("name", ["", "A B", "1A", "A=B", "A;id", "Ä"])
def test_a_variable_needs_a_name(host: Host, folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="no name of an environment variable"):
        jobs.launch(host, str(folder), ["true"], env={name: "x"})
    assert jobs.state(host, str(folder)).phase is JobPhase.ABSENT


def test_a_relative_folder_is_refused(host: Host) -> None:
    with pytest.raises(InputError, match="absolute"):
        jobs.launch(host, "job", ["true"])


def test_a_program_that_is_not_there_ends_with_127(host: Host, folder: Path) -> None:
    jobs.launch(host, str(folder), ["no-such-program"])
    assert until(host, folder, JobPhase.FINISHED).exit_code == 127
    assert "no-such-program" in (folder / "log").read_text()


def test_a_folder_that_cannot_be_made_starts_nothing(host: Host) -> None:
    with pytest.raises(TransferFailed, match="could not launch"):
        jobs.launch(host, "/proc/no/such/job", ["true"])


def test_an_ended_launch_can_be_put_aside_and_the_log_goes_on(host: Host, folder: Path) -> None:
    for attempt in (1, 2):
        jobs.launch(host, str(folder), ["bash", "-c", f"echo attempt {attempt}; exit {attempt}"])
        assert until(host, folder, JobPhase.FINISHED).exit_code == attempt
        jobs.retire(host, str(folder))
        assert jobs.state(host, str(folder)).phase is JobPhase.ABSENT
    jobs.retire(host, str(folder))
    assert (folder / "log").read_text() == "attempt 1\nattempt 2\n"
    assert [(folder / f"lock.{n}/exit").read_text() for n in (1, 2)] == ["1\n", "2\n"]


def test_a_running_job_is_not_put_aside(host: Host, folder: Path) -> None:
    sleeper(host, folder)
    with pytest.raises(AlreadyLaunched, match="is running"):
        jobs.retire(host, str(folder))


def test_a_stopped_machine_has_lost_its_jobs(
    cloud: Cloud, machine: Instance, key: KeyPair, pins: HostKeys, host: Host, folder: Path
) -> None:
    sleeper(host, folder)
    host.close()
    cloud.vast.once("change", "stop", lambda sdk: sdk.stop_instance(machine.id))
    cloud.time.sleep(60)
    cloud.vast.once("change", "start", lambda sdk: sdk.start_instance(machine.id))
    cloud.time.sleep(60)
    up = cloud.vast.instance(machine.id)
    assert up is not None
    with connect(up, key, pins, clock=cloud.time.clock, sleep=cloud.time.sleep) as again:
        assert jobs.state(again, str(folder)).phase is JobPhase.LOST


READINGS: list[tuple[str, JobPhase, Callable[[jobs.JobState], bool]]] = [
    ("", JobPhase.UNKNOWN, lambda s: "no answer" in s.detail),
    ("garbage\nlock", JobPhase.UNKNOWN, lambda s: True),
    ("proc=none", JobPhase.UNKNOWN, lambda s: "process table" in s.detail),
    ("lock=none", JobPhase.ABSENT, lambda s: True),
    (
        "lock=held\njob=none\nwrapper=none\nlaunched=100\nnow=103",
        JobPhase.UNKNOWN,
        lambda s: "a moment ago" in s.detail,
    ),
    ("lock=held\njob=none\nwrapper=none\nlaunched=100\nnow=200", JobPhase.LOST, lambda s: "cut off" in s.detail),
    ("lock=held\njob=none\nwrapper=none\nnow=200", JobPhase.LOST, lambda s: True),
    ("lock=held\njob=none\nwrapper=alive 7 70\nlaunched=100\nnow=200", JobPhase.RUNNING, lambda s: s.pid is None),
    ("lock=held\njob=alive 8 80\nwrapper=alive 7 70", JobPhase.RUNNING, lambda s: (s.pid, s.started) == (8, 80)),
    ("lock=held\njob=dead 8 80\nwrapper=alive 7 70", JobPhase.RUNNING, lambda s: s.detail == "starting or ending"),
    ("lock=held\njob=dead 8 80\nwrapper=dead 7 70\noom=kernel log", JobPhase.LOST, lambda s: s.out_of_memory),
    (
        "lock=held\njob=dead 8 80\nwrapper=dead 7 70\nexit=137\noom=kernel log",
        JobPhase.FINISHED,
        lambda s: s.out_of_memory,
    ),
    (
        "lock=held\njob=dead 8 80\nwrapper=dead 7 70\nexit=1\noom=kernel log",
        JobPhase.FINISHED,
        lambda s: not s.out_of_memory,
    ),
    ("lock=held\njob=dead 8 80\nwrapper=dead 7 70\nexit=", JobPhase.LOST, lambda s: s.exit_code is None),
]


@pytest.mark.parametrize(("text", "phase", "holds"), READINGS)
def test_what_the_machine_prints(text: str, phase: JobPhase, holds: Callable[[jobs.JobState], bool]) -> None:
    state = jobs.read_state(text)
    assert state.phase is phase
    assert holds(state)
