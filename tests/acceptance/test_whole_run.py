"""The whole run in a pseudo-terminal: a sentence, `yes`, kill -9, resume, a model at home, an answer from it, a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from bruno.runs.compare import compare
from bruno.runs.readers import EventReader, LogReader
from tests.acceptance.conftest import Bruno

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
TRIALS = 3


def test_from_a_sentence_to_a_saved_model_and_a_stopped_instance(bruno: Bruno) -> None:
    foreign = bruno.control().seed(_some_offer(bruno), label="somebody-else")

    # The sentence, the card, and an answer that is not yes.
    sentence = f"start demo on an H200 with {TRIALS} trials"
    console = bruno.terminal("do", sentence, "--sandbox")
    console.expect("Reshape demo on H200")
    console.expect("disk included")
    console.expect("yes\\? ")
    console.sendline("sure")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 4
    assert set(bruno.instances()) == {foreign}

    # The same again, with yes; killed without warning once trials run.
    console = bruno.terminal("do", sentence, "--sandbox", timeout=300)
    console.expect("yes\\? ")
    console.sendline("yes")
    console.expect(r"refusals \d+/16")  # the first trial was scored
    os.kill(console.pid, signal.SIGKILL)
    console.close()
    rented = set(bruno.instances()) - {foreign}
    assert len(rented) == 1
    instance = rented.pop()
    assert bruno.instances()[instance]["processes"], "the engine goes on without the console"

    # Started again it finds the run and goes on; nothing is rented twice.
    run = bruno.json("runs", "--sandbox")[0]["runs"][0]
    console = bruno.terminal("resume", "--sandbox", timeout=300)
    console.expect("is done")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    assert set(bruno.instances()) == {foreign, instance}

    # The numbers are the log's own, and the log says what events.jsonl says.
    seen = bruno.json("progress", run["run_id"], "--sandbox")[0]["runs"][0]
    assert (seen["state"], seen["trial"], seen["trials"]) == ("done", TRIALS, TRIALS)
    assert len(seen["history"]) + seen["stopped_trials"] == TRIALS
    assert seen["discrepancies"] == []
    log = (bruno.home / "sandbox-console" / "runs" / run["run_id"] / "engine.log").read_text()
    assert log.count("removing over-refusal from demo") == 1, "resumed, not launched again"
    assert seen["spent"] > 0
    _log_equals_events(bruno.home / "sandbox-console" / "runs" / run["run_id"])

    # The model came home whole and answers.
    model = Path(seen["local_model"])
    index = json.loads((model / "model.safetensors.index.json").read_text())
    assert all((model / shard).stat().st_size for shard in index["weight_map"].values())
    asked = subprocess.run(
        [sys.executable, "-m", "bruno.engine", "chat", str(model), "--json", "--max-new-tokens", "8"],
        input='{"message": "Name three colours."}\n', env=bruno.environ, text=True, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert next(line["text"] for line in answers if line["kind"] == "answer").strip()

    # "finish the job" asks; "stop it" shows exactly what, waits for yes, and sees it through.
    console = bruno.terminal("do", "finish the job", "--sandbox")
    console.expect("A or B")
    console.sendline("")
    console.expect(pexpect.EOF)
    console = bruno.terminal("do", "stop it", "--sandbox", timeout=90)
    console.expect(f"Stop instance {instance}")
    console.expect("model saved")
    console.expect(f"stop instance {instance}")
    console.expect("yes\\? ")
    console.sendline("yes")
    console.expect(r"is stopped.*per day", timeout=90)
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    left = bruno.instances()
    assert left[instance]["processes"] == []
    assert left[foreign]["stage"] == "running", "the other instance was never touched"


def _some_offer(bruno: Bruno) -> int:
    return bruno.json("offers", "RTX 4090", "--sandbox")[0]["rows"][0]["offer_id"]


def _log_equals_events(folder: Path) -> None:
    log, events = LogReader(), EventReader()
    log.feed((folder / "engine.log").read_bytes())
    events.feed((folder / "events.jsonl").read_bytes())
    assert log.progress.history
    assert compare(log.progress, events.progress, at_rest=True) == []
