"""Workers of a tiny real model: on this machine by `search.workers`, and joining from outside by storage and name."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from bruno.engine.command import main
from bruno.engine.events import parse_event
from tests.engine.postgres import PASSWORD, server
from tests.engine.test_command import command, finish, run_of
from tests.engine.test_run import material  # noqa: F401  (the fixture)


def events_of(folder):
    return [parse_event(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]


def kinds(events, kind):
    return [event for event in events if event.kind == kind]


def test_two_workers_on_this_machine_are_one_run(material, tmp_path, monkeypatch, capfd):  # noqa: F811
    code, out, err = finish(command(*run_of(material, "here", "--trials", "8", "--workers", "2"), cwd=tmp_path))
    assert (code, err) == (0, ""), out
    assert out.endswith("Optimization finished!\n")
    here = tmp_path / "here"
    events = events_of(here)
    results = kinds(events, "trial_scored") + kinds(events, "trial_stopped")
    assert Counter(event.trial for event in results) == Counter(range(1, 9))
    assert (
        len(kinds(events, "initial_scores")) == len(kinds(events, "model_saved")) == len(kinds(events, "held_out")) == 1
    )
    completed = [event.completed for event in kinds(events, "progress")]
    assert completed == sorted(set(completed)) and completed[-1] == 8
    blocks = [event.trial for event in events if event.kind.startswith("trial_") and event.kind != "trial_selected"]
    assert all(first == second for first, second in zip(blocks[::2], blocks[1::2], strict=True))
    # Directions were found once, and read by the other worker and by the run.
    found = [
        any(event.text.startswith("Directions from") for event in kinds(events_of(here / "workers" / n), "notice"))
        for n in "12"
    ]
    assert sorted(found) == [False, True]
    assert json.loads((here / "report.json").read_text())["trials"]["wanted"] == 8
    # The same command again repeats nothing.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path / "home"))
    assert main([str(word) for word in run_of(material, "here", "--trials", "8", "--workers", "2")]) == 0
    assert "Running trial" not in capfd.readouterr().out


def test_a_dead_worker_is_started_again_and_ctrl_c_ends_all(material, tmp_path):  # noqa: F811
    arguments = run_of(material, "here", "--trials", "400", "--workers", "2", "--heartbeat", "1")
    process = command(*arguments, "--no-save", "--no-held-out", cwd=tmp_path)
    workers, seen = tmp_path / "here" / "workers", ""
    for line in process.stdout:
        seen += line
        if line.startswith("Elapsed time") and "is started again" not in seen and "killed" not in seen:
            pids = [
                int((workers / n / "engine.pid").read_text()) for n in "12" if (workers / n / "engine.pid").exists()
            ]
            os.kill(pids[0], signal.SIGKILL)
            seen += "killed"
        if "ended (signal 9) and is started again" in line:
            process.send_signal(signal.SIGINT)
            break
    code, out, _ = finish(process)
    assert code == 130, seen + out
    assert "trials are saved; the same command goes on from there" in out.splitlines()[-1]
    for path in workers.glob("*/engine.pid"):  # at most that of the killed one, which could not remove it
        assert not Path(f"/proc/{int(path.read_text())}").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--workers", "0"), "workers"),
        (("--workers", "many"), "workers"),
    ],
)
def test_numbers_of_workers_that_are_none(material, tmp_path, more, words, monkeypatch, capfd):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main([str(word) for word in run_of(material, "here", *more)]) == 2
    assert words in capfd.readouterr().err


@pytest.fixture(scope="module")
def postgres():
    with server() as started:
        yield started


def test_a_run_and_a_worker_that_joins_it_share_one_study_and_no_password(
    material,  # noqa: F811
    tmp_path,
    postgres,
    monkeypatch,
    capfd,
):
    monkeypatch.setenv("BRUNO_SEARCH__STORAGE", postgres.new_database("joined"))
    joining = ["worker", "--study", "shared", "--out", "second", "--wait", "60"]
    second = command(*joining, cwd=tmp_path)  # before the study is made
    first = command(*run_of(material, "first", "--trials", "12", "--study", "shared", "--heartbeat", "2"), cwd=tmp_path)
    code, out, err = finish(first)
    assert (code, err) == (0, ""), out
    code, told, err = finish(second)
    assert (code, err) == (0, ""), told
    assert told.endswith("Optimization finished!\n") and "Joined the study shared as worker " in told
    both = events_of(tmp_path / "first") + events_of(tmp_path / "second")
    results = kinds(both, "trial_scored") + kinds(both, "trial_stopped")
    assert Counter(event.trial for event in results) == Counter(range(1, 13))
    assert not kinds(events_of(tmp_path / "second"), "model_saved")
    # Another model, other prompts, other settings: refused by name, before anything is loaded.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRUNO_HOME", str(tmp_path / "home"))
    assert main([*joining, "--seed", "5", "--scoring.max_new_tokens", "4"]) == 2
    told = capfd.readouterr().out
    assert "scoring.max_new_tokens: 5 then, 4 now; seed: 0 then, 5 now" in told.splitlines()[-1]
    assert main(["worker", "--study", "another", "--out", "third"]) == 2
    assert "holds no study another" in capfd.readouterr().out
    # The password is in no file that any of them wrote, and in nothing they said.
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"events.jsonl", "report.json", "reproduce.toml", "README.md"} <= {path.name for path in written}
    for form in (PASSWORD, PASSWORD.replace(":", "%3A").replace("/", "%2F").replace("'", "%27")):
        assert form not in out + told
        assert not [path for path in written if form.encode() in path.read_bytes()]
    assert "bruno:***@127.0.0.1" in (tmp_path / "first" / "report.json").read_text()
    # ... but a run that is over finds its study by it.
    assert main(["export", str(tmp_path / "first"), "--trial", "1", "--name", "again"]) == 0, capfd.readouterr().out
