"""The engine as it is started on a machine: exit codes, one line for each failure, the log equal to its JSON twin."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from bruno.engine.command import load_settings, main
from bruno.engine.data.behaviours import load_behaviour, with_defaults
from bruno.engine.events import parse_event
from bruno.engine.folder import run_folder
from bruno.engine.log import one_line
from tests.engine.test_run import material  # noqa: F401  (the fixture)


def command(*arguments, cwd, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BRUNO_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bruno.engine", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **more,
    )


def finish(process, text=None):
    out, err = process.communicate(text)
    return process.returncode, out, err


def run_of(material, out, *more):  # noqa: F811
    model, behaviour = material / "tiny", material / "coin.toml"
    return ["abliterate", model, "--behaviour", behaviour, "--out", out, "--loading.dtype", "float32", *more]


def test_a_run_from_the_command_line(material, tmp_path):  # noqa: F811
    code, out, err = finish(command(*run_of(material, "here", "--trials", "3"), cwd=tmp_path))
    assert (code, err) == (0, "")
    assert out.endswith("Optimization finished!\n")
    assert f"Models Saved: {tmp_path / 'here' / 'tiny-bruno'}" in out
    events = [parse_event(line) for line in (tmp_path / "here" / "events.jsonl").read_bytes().splitlines()]
    assert out.splitlines() == [one_line(line) for event in events for line in event.lines()]


def test_sigterm_ends_a_run_with_everything_saved_and_the_same_command_goes_on(material, tmp_path):  # noqa: F811
    arguments = run_of(material, "here", "--trials", "24", "--no-save", "--no-held-out")
    process = command(*arguments, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Running trial 4 "):
            process.send_signal(signal.SIGTERM)
            break
    code, out, _ = finish(process)
    assert code == 130
    assert "trials are saved; the same command goes on from there" in out.splitlines()[-1]
    code, out, _ = finish(command(*arguments, cwd=tmp_path))
    assert code == 0 and "Resuming from trial " in out and "Running trial 24 of 24..." in out


WRONG = [
    ((), 2, "No model was named"),
    (("demo", "--search.trails", "3"), 2, "search.trials"),
    (("demo", "--search.trials", "many"), 2, "search.trials"),
    (("./nowhere", "--behaviour", "over-refusal"), 2, "no model folder"),
    (("owner/not-here", "--behaviour", "over-refusal"), 2, "owner/not-here"),
    (("demo", "--behaviour", "refusl"), 2, "Did you mean refusal"),
    (("demo", "--data.bad", "nowhere.txt"), 2, "nowhere.txt"),
    (("chat",), 2, "No model was named"),
    (("chat", "./nowhere"), 2, "no model folder"),
    (("chat", "demo", "--beside"), 2, "--beside"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The command in this process, in a folder of its own; what it changes for its process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path / "home"))
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").handlers.clear()


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG)
def test_bad_input_is_one_clear_line(here, capsys, arguments, code, words):
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE, before = True, huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        assert main(arguments) == code
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
    out, err = capsys.readouterr()
    lines = [line for line in (out + err).splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize(
    ("said", "arguments", "trials", "tokens"),
    [
        ("", (), 40, 20),  # the behaviour's own
        ("[search]\ntrials = 12\n", (), 12, 20),
        ("", ("--trials", "200"), 200, 20),  # asked for, though it is the setting's default
    ],
)
def test_a_config_file_of_defaults_does_not_silence_the_behaviours(here, said, arguments, trials, tokens):
    from bruno.settings.render import document

    (here / "config.toml").write_text(said or document())
    settings = load_settings(["demo", *arguments])
    settings, _ = with_defaults(settings, load_behaviour(settings))
    assert (settings.search.trials, settings.scoring.max_new_tokens) == (trials, tokens)


def test_a_folder_in_use_is_refused(material, here, capsys):  # noqa: F811
    with run_folder(here / "here"):
        assert main([str(part) for part in run_of(material, "here")]) == 1
    out, err = capsys.readouterr()
    assert f"in use by another engine (process {os.getpid()})" in err and out == ""


def test_a_defect_is_one_line_and_whole_in_a_file(here, capsys, monkeypatch):
    def defect(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("bruno.engine.run.load_behaviour", defect)
    assert main(["demo", "--out", "here"]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Error: Unexpected RuntimeError: two lines. The whole of it is in ")
    assert "Traceback" in (here / "here" / "crash.log").read_text()
    assert parse_event((here / "here" / "events.jsonl").read_bytes().splitlines()[-1]).kind == "failed"


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space left on device")]
)
def test_a_disk_that_fills_during_the_search_is_one_line(here, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("bruno.engine.run.load_behaviour", full)
    assert main(["demo", "--out", "here"]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Error: ") and ("disk is full" in line or "No space left" in line)


def test_chat_in_json_answers_each_line(material, tmp_path):  # noqa: F811
    asked = '{"message": "hello"}\nnot json\n{"message": "again"}\n{"reset": true}\n'
    code, out, err = finish(command("chat", material / "tiny", "--json", "--max-new-tokens", 4, cwd=tmp_path), asked)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    kinds = [line["kind"] for line in lines if line["kind"] != "token"]
    assert kinds == ["model_loaded", "ready", "answer", "error", "answer", "reset"]
    first = next(n for n, line in enumerate(lines) if line["kind"] == "answer")
    pieces = "".join(line["text"] for line in lines[:first] if line["kind"] == "token")
    assert pieces.strip() == lines[first]["text"]
