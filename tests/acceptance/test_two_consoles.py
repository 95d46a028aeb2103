"""Two consoles on one state folder at once: one permit, one act, by the sandbox's own testimony."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.acceptance.conftest import Bruno

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


def creates(bruno: Bruno) -> int:
    return sum(act["operation"] == "create" for act in bruno.control().acts())


def test_one_plan_confirmed_by_two_processes_at_once_rents_once(bruno: Bruno) -> None:
    plan_id = bruno.json("plan", "start demo on an H200", "--sandbox")[0]["plan_id"]
    # The machine never comes up: whoever wins waits for it and is interrupted; what is tested is who rented.
    bruno.control().order("slow_loading", value=86_400)
    argv = [sys.executable, "-m", "bruno", "do", "--confirm", plan_id, "--no-follow", "--sandbox"]
    both = [
        subprocess.Popen(
            argv,
            env=bruno.environ,
            cwd=bruno.home,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    try:
        losers = _ended(both, 2, seconds=90)
        for each in losers:
            _, said = each.communicate()
            assert each.returncode == 3
            assert "before" in said
            assert len(said.strip().splitlines()) == 1
        deadline = time.monotonic() + 60  # the losers can be told before the winner's call is made
        while not creates(bruno) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert creates(bruno) == 1
        assert len(bruno.instances()) == 1
    finally:
        for each in both:
            each.kill()
            each.communicate()
    assert creates(bruno) == 1


def test_two_terminals_with_a_yes_each_do_not_rent_behind_each_others_back(bruno: Bruno) -> None:
    """Each has its own card, so each `yes` is a rental of its own; the second one is told what has changed since its card."""
    consoles = [bruno.terminal("do", "start demo on an H200", "--sandbox") for _ in range(2)]
    for console in consoles:
        console.expect("yes\\? ")
    bruno.control().order("slow_loading", value=86_400, times=2)
    consoles[0].sendline("yes")
    consoles[0].expect("waiting|wait|loading", timeout=60)
    assert creates(bruno) == 1
    consoles[1].sendline("yes")
    consoles[1].expect("changed|running", timeout=60)
    for console in consoles:
        console.close(force=True)
    assert creates(bruno) == 1


def test_stop_says_what_runs_on_and_what_it_costs(bruno: Bruno) -> None:
    assert "nothing runs on" in bruno.run("do", "STOP", "--sandbox").stdout
    offer = bruno.json("offers", "RTX 4090", "--sandbox")[0]["rows"][0]["offer_id"]
    bruno.control().seed(offer, label="left-running")
    said = bruno.run("do", "STOP", "--sandbox").stdout
    assert "nothing new is started" in said
    assert "1 of 1 instance(s) run on: $" in said
    assert "left-running" in said
    assert [act["operation"] for act in bruno.control().acts()] == []


def _ended(processes: list[subprocess.Popen[str]], count: int, *, seconds: float) -> list[subprocess.Popen[str]]:
    """Wait until so many have ended; those."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = [each for each in processes if each.poll() is not None]
        if len(ended) >= count:
            assert len(ended) == count, "nobody was left to rent"
            return ended
        time.sleep(0.1)
    raise AssertionError(f"fewer than {count} ended")
