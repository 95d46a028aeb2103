"""What bruno must not do, and how it says so: one line, a non-zero exit, nothing rented, nothing stopped."""

from __future__ import annotations

import pexpect
import pytest

from tests.acceptance.conftest import Bruno

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


def test_too_small_a_disk_is_denied_with_the_arithmetic(bruno: Bruno) -> None:
    done = bruno.run("do", "start qwen32b on an H200 with 100 GB", "--sandbox", code=3)
    assert "2 x 65.5 GB of weights + 20 GB" in done.stdout
    assert "200 GB" in done.stderr
    assert bruno.instances() == {}


BAD_REQUESTS = [
    ("start qwen33b on an H200", 2, "qwen32b"),
    ("start demo on an H200 under 0.01 $/h", 2, "cheapest costs"),
    ("start llama8b on a 4090", 3, "HF_TOKEN"),
    ("stop instance 424242", 2, "no instance 424242"),
    ("blorb the frobnicator", 1, "not understood"),
]
"""One of each kind; `tests/operator` has the whole table without a process for each."""


def test_bad_requests_are_one_clear_line(bruno: Bruno) -> None:
    for sentence, code, said in BAD_REQUESTS:
        done = bruno.run("do", sentence, "--sandbox", code=code)
        assert said in done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) <= 1
    assert bruno.instances() == {}


def test_a_piped_yes_confirms_nothing(bruno: Bruno) -> None:
    done = bruno.run("do", "start demo on an H200", "--sandbox", stdin="yes\nyes\n", code=4)
    assert "terminal" in done.stderr
    assert bruno.instances() == {}


def test_a_stop_of_somebody_elses_instance_is_refused(bruno: Bruno) -> None:
    offer = bruno.json("offers", "RTX 4090", "--sandbox")[0]["rows"][0]["offer_id"]
    foreign = bruno.control().seed(offer, label="somebody-else")
    bruno.run("do", "stop it", "--sandbox", code=2)
    console = bruno.terminal("do", f"stop instance {foreign}", "--sandbox")
    # Named by its id it may be stopped, but bruno cannot read its label file: a plain `yes` is not the word.
    console.expect("yes somebody-else\\? ", timeout=60)
    console.sendline("yes")
    console.expect("not confirmed .'yes' is not 'yes somebody-else'")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 4
    assert bruno.instances()[foreign]["stage"] == "running"


def test_a_script_confirms_by_plan_id_once(bruno: Bruno) -> None:
    card = bruno.json("plan", "start demo on an H200", "--sandbox")[0]
    plan_id = card["plan_id"]
    bruno.run("do", "--confirm", plan_id[:-1] + ("0" if plan_id[-1] != "0" else "1"), "--sandbox", code=2)
    assert bruno.instances() == {}
    bruno.run("do", "--confirm", plan_id, "--no-follow", "--sandbox", timeout=200)
    assert len(bruno.instances()) == 1
    again = bruno.run("do", "--confirm", plan_id, "--no-follow", "--sandbox", code=3)
    assert len(again.stderr.strip().splitlines()) == 1
    assert len(bruno.instances()) == 1


def test_wrong_key_and_dead_network_are_one_line(bruno: Bruno) -> None:
    bruno.extra |= {"VAST_API_KEY": "wrong-key-for-sure", "BRUNO_FLEET__URL": bruno.sandbox().url}
    done = bruno.run("instances", code=None)
    assert done.returncode != 0
    assert "key" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    bruno.extra["BRUNO_FLEET__URL"] = "http://127.0.0.1:9"
    done = bruno.run("instances", code=5)
    assert "could not" in done.stdout + done.stderr


def test_without_a_key_the_sandbox_is_named(bruno: Bruno) -> None:
    done = bruno.run("instances", code=2)
    assert "--sandbox" in done.stderr


def test_without_a_terminal_there_is_no_console(bruno: Bruno) -> None:
    done = bruno.run("--sandbox", code=2)
    assert "terminal" in done.stderr
