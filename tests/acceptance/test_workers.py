"""A run over two instances from outside: real SSH, a real PostgreSQL, the real engine; a console killed between rentals."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.acceptance.conftest import Bruno
from tests.engine.postgres import PASSWORD, Server, server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
TRIALS = 3
SENTENCE = f"start demo on 2 instances with an H200 each with {TRIALS} trials"


@pytest.fixture
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


def creates(bruno: Bruno) -> int:
    return sum(act["operation"] == "create" for act in bruno.control().acts())


def test_a_run_without_a_database_that_answers_rents_nothing(bruno: Bruno, postgres: Server) -> None:
    said = bruno.run("do", SENTENCE, "--sandbox", code=2).stderr
    assert "search.storage = postgresql://" in said
    assert len(said.strip().splitlines()) == 1
    postgres.control("stop")
    bruno.extra["BRUNO_SEARCH__STORAGE"] = postgres.url
    said = bruno.run("do", SENTENCE, "--sandbox", code=3).stderr
    assert f"nothing answers at 127.0.0.1:{postgres.port}" in said
    assert PASSWORD not in said
    postgres.control("start")
    question = bruno.json("plan", "start demo on 2 H200s", "--sandbox", code=4)[0]
    assert [option["letter"] for option in question["clarification"]["options"]] == ["A", "B"]
    assert creates(bruno) == 0


def test_one_yes_two_instances_one_study_one_model(bruno_with_demo: Bruno, postgres: Server) -> None:
    bruno = bruno_with_demo
    bruno.extra["BRUNO_SEARCH__STORAGE"] = postgres.new_database("studies")
    bruno.extra |= {"BRUNO_DATA__BAD_COUNT": "24", "BRUNO_DATA__GOOD_COUNT": "24", "BRUNO_SCORING__MAX_NEW_TOKENS": "8"}
    bruno.extra |= {"BRUNO_SCORING__BAD_COUNT": "8", "BRUNO_SCORING__GOOD_COUNT": "8"}
    bruno.extra["BRUNO_SEARCH__STOP_DOMINATED"] = "false"  # every trial has its count, so that they can be counted here

    # Killed between the two rentals; started again it rents nothing, loses nothing, and goes on with what there is.
    console = bruno.terminal("do", SENTENCE, "--sandbox", timeout=120)
    console.expect("for 2 instances together")
    console.expect("yes\\? ")
    console.sendline("yes")
    console.expect("worker 1: rent the instance: done")
    assert console.pid
    os.kill(console.pid, signal.SIGKILL)
    console.close()
    (lost,) = bruno.instances()
    console = bruno.terminal("resume", "--sandbox", timeout=120)
    console.expect("1 of 2 instances are rented")
    console.expect("confirmed but not begun")
    console.close(force=True)
    assert creates(bruno) == 1
    run = bruno.json("runs", "--sandbox")[0]["runs"][0]
    assert [worker["instance_id"] for worker in run["workers"]] == [lost, None]
    _stopped(bruno, run["run_id"], {lost})

    # The whole run.
    console = bruno.terminal("do", SENTENCE, "--sandbox", timeout=400)
    console.expect("yes\\? ")
    console.sendline("yes")
    console.expect("worker 2: launch its worker, detached and under a lock: done")
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if "rd-of-tests" in " ".join(each.info["cmdline"] or [])
    ]
    console.expect("is done")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    assert creates(bruno) == 3
    ours = set(bruno.instances()) - {lost}
    run = bruno.json("progress", bruno.json("runs", "--sandbox")[0]["runs"][0]["run_id"], "--sandbox")[0]["runs"][0]
    assert (run["state"], run["trial"], run["trials"]) == ("done", TRIALS, TRIALS)
    assert {worker["instance_id"] for worker in run["workers"]} == ours
    assert [trial["number"] for trial in run["history"]] == list(range(1, TRIALS + 1))
    assert sum(worker["scored"] for worker in run["workers"]) == TRIALS
    assert run["discrepancies"] == []
    assert run["spent"] == pytest.approx(sum(worker["spent"] for worker in run["workers"]))
    assert run["per_hour"] == pytest.approx(sum(worker["per_hour"] for worker in run["workers"]))
    assert (Path(run["local_model"]) / "config.json").is_file()
    shown = bruno.run("progress", run["run_id"], "--sandbox").stdout
    assert "worker 1" in shown and "worker 2" in shown

    _no_password_lies_open(bruno)
    _stopped(bruno, run["run_id"], ours)


def _stopped(bruno: Bruno, run_id: str, instances: set[int]) -> None:
    """One yes for all of a run's instances, each named; then each is stopped, the sandbox says so."""
    console = bruno.terminal("do", f"stop {run_id}", "--sandbox", timeout=120)
    for number in sorted(instances):
        console.expect(f"stop instance {number}")
    console.expect("yes\\? ")
    console.sendline("yes")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    assert all(bruno.instances()[number]["processes"] == [] for number in instances)


def _no_password_lies_open(bruno: Bruno) -> None:
    """On this computer it is in no file; on the machines only in files of mode 0600 that the process read it from."""
    words = [PASSWORD.encode(), b"rd-of-tests"]
    for path in (path for path in bruno.home.rglob("*") if path.is_file() and not path.is_symlink()):
        if any(word in path.read_bytes() for word in words):
            assert path.name == "env", path
            assert "instances" in path.parts, path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
