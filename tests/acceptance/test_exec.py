"""`bruno exec` from outside: its own process, a real sandbox instance, a real terminal for the word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pexpect
import pytest

from bruno.fleet.keys import key_pair
from bruno.fleet.vast import Vast
from tests.acceptance.conftest import Bruno

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]
LABEL = "bruno-demo-1"


def rented(bruno: Bruno) -> tuple[str, Path]:
    """A running instance with this console's key on it: its id and its home folder."""
    info = bruno.sandbox()
    os.environ["NO_PROXY"] = "127.0.0.1"
    vast = Vast(info.api_key, info.url)
    public = key_pair(bruno.home / "sandbox-console" / "keys").public_key
    vast.once("ssh", "register a key", lambda sdk: sdk.create_ssh_key(public))
    offer = bruno.json("offers", "H200", "--sandbox")[0]["rows"][0]["offer_id"]
    body = vast.once(
        "create",
        "rent",
        lambda sdk: sdk.create_instance(offer, image="x/y", disk=40, label=LABEL, ssh=True, direct=True),
    )
    bruno.control().advance(60)
    number = str(body["new_contract"])
    home = next(path.parent for path in bruno.home.rglob(f"instances/{number}/root/.vast_containerlabel"))
    return number, home


def test_a_line_on_an_instance(bruno: Bruno) -> None:
    number, home = rented(bruno)
    (home / "hostile.txt").write_bytes(b"one  two\n\x1b]52;c;eWVz\x07\x1b[2Jthree\x05\n")
    read = ("exec", "cat hostile.txt", "--on", number, "--sandbox")
    done = bruno.run(*read)
    assert (done.stdout, done.stderr) == ("one  two\nthree\n", "")
    assert bruno.run("--readonly", *read).stdout == done.stdout
    assert bruno.run("exec", "ls nowhere", "--on", LABEL, "--sandbox", code=2).stdout == ""
    lines = bruno.json("exec", "cat hostile.txt", "--on", number, "--sandbox")
    assert [line["kind"] for line in lines] == ["card", "happening", "happening", "answer"]
    assert (lines[0]["decision"]["verdict"], lines[-1]["exit_code"]) == ("allow", 0)

    (home / "old").mkdir()
    remove = ("exec", "rm -r old", "--on", number, "--sandbox")
    assert "terminal" in bruno.run(*remove, stdin="yes\n", code=4).stderr
    assert "--readonly" in bruno.run("--readonly", *remove, code=3).stderr
    refused = bruno.run("exec", "touch reached; git push elsewhere x", "--on", number, "--sandbox", code=3)
    assert "not to elsewhere" in refused.stderr
    assert sorted(path.name for path in home.iterdir() if not path.name.startswith(".")).count("reached") == 0
    _at_a_terminal(bruno, home, number)
    _by_plan_id(bruno, home, number)
    kinds = [(line["kind"], line["data"].get("kind", line["data"].get("outcome"))) for line in _audit(bruno)]
    begun = [index for index, (kind, what) in enumerate(kinds) if (kind, what) == ("act begun", "run_command")]
    assert len(begun) == 6  # four that only read, one at the terminal, one by its plan id
    assert all(kinds[index + 1] == ("act ended", "done") for index in begun)
    bruno.run("audit", "verify", "--sandbox")


def _at_a_terminal(bruno: Bruno, home: Path, number: str) -> None:
    for word, code, left in (("y", 4, True), ("yes", 0, False)):
        console = bruno.terminal("exec", "rm -r  old", "--on", number, "--sandbox")
        console.expect_exact("| rm -r  old")  # both blanks of it
        console.expect_exact("yes? ")
        console.sendline(word)
        console.expect(pexpect.EOF)
        console.close()
        assert (console.exitstatus, (home / "old").exists()) == (code, left)


def _by_plan_id(bruno: Bruno, home: Path, number: str) -> None:
    (home / "old").mkdir()
    card = bruno.json("plan", f"exec rmdir old && rm -r nothing on {number}", "--sandbox")[0]
    assert card["decision"]["verdict"] == "confirm"
    done = bruno.run("do", "--confirm", card["plan_id"], "--sandbox", code=1)  # rm's own exit code
    assert not (home / "old").exists()
    assert "exit code 1" in done.stdout
    bruno.run("do", "--confirm", card["plan_id"], "--sandbox", code=3)


def _audit(bruno: Bruno) -> list[dict]:
    lines = [json.loads(line) for line in bruno.run("audit", "export", "--sandbox").stdout.splitlines()]
    return [
        {**line, "data": json.loads(line["data"]) if isinstance(line["data"], str) else line["data"]} for line in lines
    ]


def test_another_label_between_plan_and_act_stops_it(bruno: Bruno) -> None:
    number, home = rented(bruno)
    (home / "old").mkdir()
    card = bruno.json("plan", f"exec rm -r old on {number}", "--sandbox")[0]
    info = bruno.sandbox()
    Vast(info.api_key, info.url).once("change", "label", lambda sdk: sdk.label_instance(int(number), "somebody-else"))
    done = bruno.run("do", "--confirm", card["plan_id"], "--sandbox", code=3)
    assert "label" in done.stderr
    assert (home / "old").is_dir()


def test_ctrl_c_ends_the_line_on_the_machine(bruno: Bruno) -> None:
    number, home = rented(bruno)
    console = bruno.terminal("exec", "echo begun; sleep 600; touch reached", "--on", number, "--sandbox")
    if console.expect_exact(["begun", "yes? "]) == 1:
        console.sendline("yes")
        console.expect_exact("begun\r\n")
    console.sendintr()
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 130
    assert not (home / "reached").exists()
