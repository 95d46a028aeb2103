"""Prompts on a real pseudo-terminal, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

SCRIPT = str(Path(__file__).with_name("scripted_bruno.py"))
BY_HAND = "yes? "


def spawn(scenario: str, *arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable, [SCRIPT, scenario, *arguments], encoding="utf-8", timeout=60, dimensions=(40, 100)
    )


def finish(child: pexpect.spawn) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    text = child.before or ""
    child.close()
    return child.exitstatus, text


def test_the_word_typed_at_the_prompt_acts() -> None:
    child = spawn("confirm", "do", "start")
    child.expect_exact(BY_HAND)
    child.sendline("yes")
    code, text = finish(child)
    assert code == 0
    assert "ACTED" in text
    assert "renting" in text
    assert "hidden" not in text


@pytest.mark.parametrize("typed", ["y", "YES", "no", "sure", ""])
def test_anything_else_does_not(typed: str) -> None:
    child = spawn("confirm", "do", "start")
    child.expect_exact(BY_HAND)
    child.sendline(typed)
    code, text = finish(child)
    assert code == 4
    assert "nothing was done" in text
    assert "ACTED" not in text


def test_what_was_typed_before_the_prompt_is_dropped() -> None:
    child = spawn("confirm", "do", "start")
    child.send("yes\nyes\n")
    child.expect_exact("Start demo on an H200")
    child.send("yes\n")
    child.expect_exact(BY_HAND)
    child.sendline("no")
    code, text = finish(child)
    assert code == 4
    assert "ACTED" not in text


def test_what_cannot_be_undone_needs_its_label() -> None:
    child = spawn("destroy", "do", "start")
    child.expect_exact("yes bruno-demo-1? ")
    child.sendline("yes")
    assert finish(child)[0] == 4
    child = spawn("destroy", "do", "start")
    child.expect_exact("yes bruno-demo-1? ")
    child.sendline("yes bruno-demo-1")
    assert "ACTED" in finish(child)[1]


def test_end_of_input_is_no_answer() -> None:
    child = spawn("confirm", "do", "start")
    child.expect_exact(BY_HAND)
    child.sendeof()
    assert finish(child)[0] == 4


def test_ctrl_c_at_the_prompt() -> None:
    child = spawn("confirm", "do", "start")
    child.expect_exact(BY_HAND)
    child.sendintr()
    code, text = finish(child)
    assert code == 130
    assert "nothing was done" in text
    assert "ACTED" not in text
    assert "Traceback" not in text


def test_letters() -> None:
    child = spawn("ask", "do", "start")
    child.expect_exact("Which one? A or B: ")
    child.sendline("x")
    child.expect_exact("Which one? A or B: ")
    child.sendline("b")
    code, text = finish(child)
    assert code == 0
    assert "chose B" in text


def test_ctrl_c_lets_go_and_says_what_goes_on() -> None:
    child = spawn("long", "do", "start")
    child.expect_exact(BY_HAND)
    child.sendline("yes")
    child.expect_exact("renting")
    child.sendintr()
    code, text = finish(child)
    assert code == 130
    assert "letting go" in text
    assert "demo-1 goes on without this console" in text
    assert "$3.410/h" in text
    assert "Traceback" not in text


def test_a_yes_that_is_piped_in_is_refused(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "confirm", "do", "start"],
        input="yes\nyes\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "BRUNO_HOME": str(home)},
    )
    assert done.returncode == 4
    assert "stdin is not a terminal" in done.stderr
    assert "ACTED" not in done.stdout


def test_a_script_repeats_the_plan_id(home: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, "confirm", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "BRUNO_HOME": str(home)},
        )

    planned = run("plan", "start", "--json")
    assert planned.returncode == 0, planned.stderr
    card = json.loads(planned.stdout)
    wrong = run("do", "--confirm", "0" * 64)
    assert wrong.returncode == 4
    assert "ACTED" not in wrong.stdout
    short = run("do", "--confirm", card["plan_id"][:12])
    assert short.returncode == 4
    done = run("do", "--confirm", card["plan_id"], "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line != "ACTED"]
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "card"
    assert kinds[-1] == "answer"
    assert kinds.count("happening") == 2


def test_a_denied_plan_asks_nothing() -> None:
    child = spawn("deny", "do", "start")
    code, text = finish(child)
    assert code == 3
    assert BY_HAND not in text


def test_the_card_is_on_the_terminal_when_stdout_is_not(tmp_path: Path) -> None:
    command = f"{sys.executable} {SCRIPT} confirm do start > {tmp_path / 'out'}"
    child = pexpect.spawn("/bin/sh", ["-c", command], encoding="utf-8", timeout=60)
    child.expect_exact("Start demo on an H200")
    child.expect_exact(BY_HAND)
    child.sendline("yes")
    assert finish(child)[0] == 0
    assert "ACTED" in (tmp_path / "out").read_text()


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f'{sys.executable} -c \'from bruno.cli import main; raise SystemExit(main(["abliterate", "--help"]))\''
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_nothing_heavy_is_imported_for(arguments: list[str]) -> None:
    heavy = ["textual", "torch", "sqlmodel", "vastai", "anthropic", "fabric", "pydantic", "rich", "transformers"]
    code = (
        "import json, sys; from bruno.cli import main; "
        f"code = main({arguments!r}); sys.stderr.write(json.dumps([m for m in {heavy!r} if m in sys.modules])); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert json.loads(done.stderr) == []


def test_help_says_the_exit_codes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from bruno.cli import main; main(['--help'])"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Exit codes:" in done.stdout
    assert "130  interrupted" in done.stdout
