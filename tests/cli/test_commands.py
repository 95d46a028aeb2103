"""Each command asks the service for the right thing and says what it answered; errors are one line with their code."""

from __future__ import annotations

import errno
import json
import os

import pytest

from bruno.cli.app import app
from bruno.cli.routing import COMMANDS, route
from bruno.errors import BrunoError, Denied, InputError, NotConfirmed, RunFailed, Unreachable
from bruno.guard.decision import Verdict
from bruno.intents import DestroyInstance, FetchModel, ResumeRun, ShowCosts, ShowOffers, ShowProgress, StopInstance
from bruno.operator.views import Answer, Ask, Instances, InstancesView, Offers, OfferView, Progress, RunState, Talk
from bruno.settings.engine import EngineSettings
from tests.tui.scripted import NOW, instance_view, run_view, start_card, two_meanings


@pytest.mark.parametrize(
    ("arguments", "routed"),
    [
        ([], []),
        (["--sandbox"], ["--sandbox"]),
        (["do", "start x"], ["do", "start x"]),
        (["--sandbox", "do", "x"], ["--sandbox", "do", "x"]),
        (["--config", "a.toml", "runs"], ["--config", "a.toml", "runs"]),
        (["qwen7b"], ["abliterate", "qwen7b"]),
        (["Qwen/Qwen2.5-7B", "--trials", "4"], ["abliterate", "Qwen/Qwen2.5-7B", "--trials", "4"]),
        (["--model", "demo"], ["abliterate", "--model", "demo"]),
        (["--config", "a.toml", "--model", "demo"], ["abliterate", "--config", "a.toml", "--model", "demo"]),
        (["--search.trials=3", "demo"], ["abliterate", "--search.trials=3", "demo"]),
    ],
)
def test_route(arguments: list[str], routed: list[str]) -> None:
    assert route(arguments) == routed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["progres"], "Did you mean progress?"),
        (["qwen7c"], "Did you mean qwen7b"),
        (["start", "demo", "on", "an", "H200"], 'bruno do "start demo on an H200"'),
        (["start demo under 3 $/h"], 'bruno do "start demo under 3 $/h"'),
        (["xyzzy"], "bruno --help"),
    ],
)
def test_route_refuses_what_is_neither(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match="neither a command nor a model") as caught:
        route(arguments)
    assert words in str(caught.value)


def test_a_folder_is_a_model(tmp_path) -> None:
    (tmp_path / "mymodel").mkdir()
    assert route(["mymodel"]) == ["abliterate", "mymodel"]


def test_every_command_is_routed() -> None:
    named = {command.name or command.callback.__name__ for command in app.registered_commands}
    named |= {group.name for group in app.registered_groups}
    assert named <= COMMANDS
    assert COMMANDS - named <= {"guard"}


@pytest.mark.parametrize(
    ("arguments", "intent"),
    [
        (["progress"], ShowProgress()),
        (["progress", "demo-1"], ShowProgress(target="demo-1")),
        (["offers", "H200", "--count", "2"], ShowOffers(gpu="H200", count=2)),
        (["stop", "101"], StopInstance(target="101")),
        (["stop"], StopInstance()),
        (["destroy", "101"], DestroyInstance(target="101")),
        (["fetch", "demo-1"], FetchModel(target="demo-1")),
        (["resume"], ResumeRun()),
        (["costs"], ShowCosts()),
    ],
)
def test_commands_submit_their_intent(bruno, operator, arguments: list[str], intent: object) -> None:
    said = bruno(*arguments)
    assert said.code == 0, said.err
    assert operator.asked == [intent]
    assert operator.closed


@pytest.mark.parametrize("command", ["stop", "destroy", "fetch", "resume"])
def test_readonly_refuses_to_act(bruno, operator, command: str) -> None:
    said = bruno("--readonly", command, "101")
    assert said.code == Denied.exit_code
    assert operator.asked == []


def test_do_with_readonly_shows_the_plan_and_stops(bruno, operator) -> None:
    operator.replies["start demo"] = start_card()
    said = bruno("--readonly", "do", "start demo")
    assert said.code == Denied.exit_code
    assert "Start demo on an H200" in said.out
    assert operator.acted == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("unknown GPU 'h2000'", fix="Did you mean h200?"), 2),
        (Denied("100 GB is too little"), 3),
        (NotConfirmed("not confirmed"), 4),
        (Unreachable("the provider did not answer"), 5),
        (RunFailed("the engine crashed"), 6),
        (BrunoError("two\nlines\x1b[31m"), 1),
    ],
)
def test_errors_are_one_line_with_their_code(bruno, operator, monkeypatch, error: BrunoError, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(operator, "ask", fail)
    said = bruno("do", "anything")
    assert said.code == code
    assert said.err.count("\n") == 1
    assert said.err.startswith("bruno: ")
    assert "\x1b" not in said.err
    assert "Traceback" not in said.err + said.out


def test_the_unexpected_goes_to_the_log_without_its_secrets(bruno, operator, monkeypatch, home) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("key hf_" + "a" * 30)

    monkeypatch.setattr(operator, "ask", fail)
    said = bruno("do", "anything")
    assert said.code == 1
    assert said.err == f"bruno: bruno stopped on an unexpected ValueError. Its traceback is in {home / 'bruno.log'}\n"
    written = (home / "bruno.log").read_text()
    assert "Traceback (most recent call last)" in written
    assert "a" * 30 not in written


def test_progress_says_raw_counts(bruno, operator) -> None:
    operator.replies["show_progress"] = Progress(runs=(run_view(discrepancies=("log says 3, events say 4",)),))
    said = bruno("progress")
    assert "trial 5 of 20" in said.out
    assert "refusals 38/40 at the start, last 4/40 at KL 0.1 (trial 5), best 3/40 at KL 0.11 (trial 3)" in said.out
    assert "discrepancy: log says 3, events say 4" in said.out


def test_progress_as_json_is_the_view(bruno, operator) -> None:
    operator.replies["show_progress"] = Progress(runs=(run_view(),))
    shown = json.loads(bruno("progress", "--json").out)
    assert Progress.model_validate(shown) == operator.replies["show_progress"]


def test_progress_watch_says_changes_until_the_end(bruno, operator, monkeypatch) -> None:
    views = [run_view(), run_view(elapsed_seconds=99.0), run_view(trial=6), run_view(trial=20, state=RunState.DONE)]
    monkeypatch.setattr(operator, "submit", lambda intent, **_: Progress(runs=(views.pop(0),)))
    monkeypatch.setattr("bruno.cli.watch.time.sleep", lambda seconds: None)
    lines = bruno("progress", "--watch").out.splitlines()
    assert [line.split(" · ")[2] for line in lines] == ["trial 5 of 20", "trial 6 of 20", "trial 20 of 20"]


def test_runs(bruno, operator) -> None:
    assert "no run yet" in bruno("runs").out
    operator.run_views = (
        run_view(),
        run_view(run_id="old", name="old", state=RunState.FAILED, problem="out of memory"),
    )
    said = bruno("runs")
    assert "▶ demo-1 searching" in said.out
    assert "✘ old failed" in said.out
    assert "✘ out of memory" in said.out
    assert [run["run_id"] for run in json.loads(bruno("runs", "--json").out)["runs"]] == ["demo-1", "old"]


def test_instances(bruno, operator) -> None:
    assert "no instance is rented" in bruno("instances").out
    other = instance_view(instance_id=102, label="other", run_id=None, status="stopped", gpu_utilisation=None)
    operator.view = InstancesView(known=True, rows=(instance_view(), other), read_at=NOW, credit=25.0)
    said = bruno("instances")
    assert "▶ running" in said.out
    assert "other (not bruno's)" in said.out
    assert "now $3.416/h" in said.out  # 3.41 and a stopped disk at 0.15 a day
    assert json.loads(bruno("instances", "--json").out)["view"]["rows"][1]["instance_id"] == 102


def test_an_unreadable_list_is_unknown_and_not_empty(bruno, operator) -> None:
    operator.view = InstancesView(known=False, problem="HTTP 500")
    said = bruno("instances")
    assert said.code == Unreachable.exit_code
    assert "the provider's list is unknown: HTTP 500" in said.out
    assert "no instance" not in said.out


def test_offers(bruno, operator) -> None:
    row = OfferView(
        offer_id=9001,
        gpu="H200",
        gpu_count=2,
        gpu_memory_gb=144.0,
        per_hour=3.41,
        disk_gb=100.0,
        reliability=None,
        location="Taiwan\x1b]0;x\x07, TW",
        download_mbps=900.0,
    )
    operator.replies["show_offers"] = Offers(rows=(row,))
    said = bruno("offers")
    assert "2 x H200" in said.out
    assert "$3.410/h" in said.out
    assert "unknown" in said.out
    assert "\x1b" not in said.out


def test_an_answer_that_failed_exits_with_one(bruno, operator) -> None:
    said = bruno("do", "mumble")
    assert said.code == 1
    assert "not understood: mumble" in said.out


def test_an_answer_may_say_what_to_exit_with(bruno, operator) -> None:
    operator.replies["show_costs"] = Answer(text="the list could not be read", failed=True, exit_code=5)
    assert bruno("costs").code == 5
    operator.replies["which run"] = Instances(view=InstancesView(known=False, problem="HTTP 500"))
    assert bruno("do", "which run").code == 5


def test_do_needs_words(bruno, operator) -> None:
    said = bruno("do")
    assert said.code == 2
    assert operator.asked == []


@pytest.mark.parametrize("words", [("start", "demo"), ("start demo",)])
def test_do_joins_its_words(bruno, operator, words: tuple[str, ...]) -> None:
    operator.replies["start demo"] = Answer(text="ok")
    assert bruno("do", *words).code == 0


def test_without_a_terminal_nothing_is_confirmed(bruno, operator) -> None:
    operator.replies["start demo"] = start_card()
    said = bruno("do", "start demo")
    assert said.code == NotConfirmed.exit_code
    assert "stdin is not a terminal" in said.err
    assert "bruno plan ... --json, then bruno do --confirm PLAN_ID" in said.err
    assert operator.acted == []


def test_a_denied_plan_shows_its_reasons(bruno, operator) -> None:
    operator.replies["start demo"] = start_card(Verdict.DENY)
    said = bruno("do", "start demo")
    assert said.code == Denied.exit_code
    assert "Denied. Nothing was done." in said.out
    assert operator.acted == []


def test_two_meanings_without_a_terminal(bruno, operator) -> None:
    operator.replies["finish the job"] = Ask(clarification=two_meanings())
    said = bruno("do", "finish the job")
    assert said.code == NotConfirmed.exit_code
    assert "A) let it continue to completion" in said.out
    assert "B) stop it now" in said.out
    assert operator.chosen == []


def test_talk_needs_the_engine(bruno, operator, monkeypatch) -> None:
    operator.replies["chat_with"] = Talk(model="/models/demo", beside="demo")
    monkeypatch.setattr("bruno.cli.engine.find_spec", lambda name: None)
    said = bruno("chat", "demo-1")
    assert said.code == 2
    assert 'pip install "bruno[engine]"' in said.err


@pytest.mark.parametrize("arguments", [["abliterate", "demo"], ["demo"], ["--model", "demo"], ["chat", "a/b"]])
def test_the_engine_is_asked_for_before_it_is_imported(bruno, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr("bruno.cli.engine.find_spec", lambda name: None)
    said = bruno(*arguments)
    assert said.code == 2
    assert 'pip install "bruno[engine]"' in said.err


def test_a_wrong_setting_is_said_before_the_engine_is_looked_for(bruno, monkeypatch) -> None:
    monkeypatch.setattr("bruno.cli.engine.find_spec", lambda name: None)
    said = bruno("abliterate", "demo", "--trails", "5")
    assert said.code == 2
    assert "unknown setting --trails" in said.err


def test_abliterate_help_lists_every_engine_setting(bruno) -> None:
    said = bruno("abliterate", "--help")
    assert said.code == 0
    for group, info in EngineSettings.model_fields.items():
        names = getattr(info.annotation, "model_fields", None)
        for name in [f"{group}.{leaf}" for leaf in names] if names else [group]:
            assert f"--{name}" in said.out


def test_config(bruno, home) -> None:
    said = bruno("config", "path")
    assert "no config file" in said.out
    assert f"state: {home}" in said.out
    assert "in force here" in bruno("config", "show").out.splitlines()[0]
    assert "with its default" in bruno("config", "show", "--defaults").out.splitlines()[0]
    (home / "mine.toml").write_text("[search]\ntrials = 7\n")
    assert "trials = 7" in bruno("--config", "mine.toml", "config", "show").out
    assert json.loads(bruno("--config", "mine.toml", "config", "show", "--json").out)["search"]["trials"] == 7
    assert "trials = 7" not in bruno("config", "show", "--defaults").out


def test_the_console_needs_a_terminal(bruno) -> None:
    said = bruno()
    assert said.code == 2
    assert "bruno do" in said.err


def test_an_unknown_option_is_one_line(bruno) -> None:
    said = bruno("do", "--nope", "x")
    assert said.code == 2
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit",), "missing argument 'model'. bruno fit --help"),
        (("runs", "extra"), "bruno runs --help"),
        (("concern", "nope"), "bruno concern --help"),
        (("exec", "  "), "no shell line was given"),
        (("guard", "check", ""), "no shell line was given"),
    ],
)
def test_wrong_usage_names_the_help_of_its_own_command(bruno, arguments: tuple[str, ...], said: str) -> None:
    answer = bruno(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_a_state_folder_that_cannot_be_made_is_said(bruno, home, monkeypatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("BRUNO_HOME", str(home / "file"))
    said = bruno("runs")
    assert said.code == 2
    assert said.err == (
        f"bruno: the state folder {home / 'file'} cannot be made: File exists. "
        "Set BRUNO_HOME to a folder that can be written\n"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_a_machine_in_the_way_is_no_defect_of_bruno(bruno, home, operator, monkeypatch, number: int) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), str(home / "x"))

    monkeypatch.setattr(operator, "runs", fail)
    said = bruno("runs")
    assert said.code == 1
    assert said.err.startswith(f"bruno: {home / 'x'}: {os.strerror(number)}. ")
    assert "unexpected" not in said.err
    assert not (home / "bruno.log").exists()
