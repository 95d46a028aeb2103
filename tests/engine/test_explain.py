"""explain: what it tells of a real run, of half a run, and of a folder that lies; and its plot."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bruno.engine import events as ev
from bruno.engine.command import main
from bruno.engine.edits.build import Kernel
from bruno.engine.explain import Trial, explain
from bruno.engine.explain_plot import Layers, NoPlot, draw, kernels, plot, read_layers
from bruno.engine.explain_text import lines
from bruno.errors import InputError
from tests.engine.test_run import finished, material  # noqa: F401  (fixtures)


def log_of(folder: Path, *events: ev._Event, rest: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events) + rest)
    return folder


def started(**settings: object) -> ev.RunStarted:
    return ev.RunStarted(version="9.9", model="m", behaviour="b", out="o", seed=1, pid=1, settings=settings)


@pytest.fixture
def told(finished, tmp_path) -> Path:  # noqa: F811
    """A real run's folder with its events, as the command leaves it (the run under test kept them in a list)."""
    folder, events = finished
    log_of(tmp_path, *events)
    for name in ("report.json", "directions.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def test_a_finished_run_is_told_whole(told, finished):  # noqa: F811
    run = explain(told)
    report = json.loads((told / "report.json").read_text())
    held = next(event for event in finished[1] if isinstance(event, ev.HeldOut))
    assert run.state.startswith("finished after") and run.directions
    assert run.directions.used == report["directions"]["used"] and run.directions.used
    assert run.chosen and run.chosen.trial == report["chosen"]["trial"]
    assert run.held_out and run.held_out.after_interval == held.after_interval
    assert run.changed_settings["search.trials"] == 6 and run.changed_settings["loading.dtype"] == ["float32"]
    assert run.saved == [report["saved"]] and any("search.trials = 6" in text for text in run.defaults)
    text = "\n".join(lines(run))
    for words in (f"trial {run.chosen.trial}: ", "95 % interval", "rule: fewest refusals", "trials scored: "):
        assert words in text
    kept = report["trials"]
    assert kept["scored"] + kept["stopped"] == kept["wanted"] == 6 and f"trials scored: {kept['scored']} of 6" in text
    assert (f"better in refusals and KL: {kept['stopped']}" in text) == (kept["stopped"] > 0)
    for name in report["chosen"]["parameters"]:
        assert f"{name} = " in text


def test_a_saved_model_tells_without_events(finished):  # noqa: F811
    run = explain(finished[0] / "tiny-bruno")
    assert run.state == "finished" and run.chosen and not run.fallbacks


def test_half_a_run_tells_what_its_events_say(tmp_path):
    fallback = ev.Fallback(method="probe", reason="too few", instead="mean difference")
    scored = ev.TrialScored(trial=1, refusals=2, prompts=8, kl=0.5)
    log_of(
        tmp_path,
        started(search={"trials": 3}),
        fallback,
        ev.Notice(text="careful", level="warning"),
        ev.InitialScores(refusals=7, prompts=8),
        ev.TrialStarted(trial=1, trials=3, parameters={"x": 1.0}),
        scored,
        ev.TrialFailed(trial=2, reason="KL is nan"),
        started(search={"trials": 3}),
        fallback.model_copy(update={"time": "later"}),
        ev.Interrupted(completed=1, trials=3),
        rest='{"kind": "trial_sc',
    )
    run = explain(tmp_path)
    assert run.state == "interrupted after 1 of 3 trials" and run.unread == 1
    assert run.fallbacks == [{"method": "probe", "reason": "too few", "instead": "mean difference"}]
    assert run.warnings == ["careful"] and run.failed_trials == {2: "KL is nan"}
    assert run.trials == {"scored": 1, "stopped": 0, "wanted": 3} and run.initial_refusals == (7, 8)
    assert "probe: too few; continued with mean difference" in "\n".join(lines(run))


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (ev.Failed(message="no disk"), "failed: no disk"),
        (ev.Progress(completed=1, trials=2, elapsed_seconds=1, remaining_seconds=1), "not ended: it runs"),
        (ev.Finished(seconds=61), "finished after 1m 1s"),
    ],
)
def test_the_state_is_the_last_starts(tmp_path, last, state):
    log_of(tmp_path, started(), ev.Finished(seconds=5), started(), last)
    assert explain(tmp_path).state.startswith(state)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("other", "", "holds no run"),
        ("events.jsonl", "not an event\n", "holds no run"),
        ("report.json", "{", "is not JSON"),
        ("report.json", "[" * 100_000, "not a report"),
        ("report.json", '{"model": "m"}', "behaviour"),
        ("report.json", '{"model": "m", "behaviour": "b", "chosen": {"trial": "x"}}', "chosen"),
        ("report.json", '{"model": "m", "behaviour": "b", "held_out": 3}', "held_out"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content)
    assert main(["explain", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_what_the_report_adds_is_shown_and_escaped(tmp_path, capsys):
    report = {"model": "m\x1b[2J", "behaviour": "b\nState: finished", "judge": {"count": 3}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main(["explain", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J" in out and "b\\nState" in out
    assert 'judge: {"count": 3}' in out
    assert main(["explain", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["further"] == {"judge": {"count": 3}}


def test_kernels_are_those_of_the_edit():
    parameters = {
        "attn.o_proj.max_weight": 1.3,
        "attn.o_proj.position": 4.2,
        "attn.o_proj.min_fraction": 0.4,
        "attn.o_proj.reach": 3.0,
        "mlp.down_proj.max_weight": -0.2,
        "mlp.down_proj.position": 6.0,
        "mlp.down_proj.min_fraction": 0.1,
        "mlp.down_proj.reach": 0.0,
        "direction_scope": "global",
    }
    found = kernels(Trial(trial=1, refusals=0, prompts=1, kl=0, parameters=parameters), 9)
    for component in ("attn.o_proj", "mlp.down_proj"):
        parts = {part: parameters[f"{component}.{part}"] for part in Kernel.__dataclass_fields__}
        assert found[component] == [Kernel(**parts).weight(block) for block in range(9)]
    assert set(found) == {"attn.o_proj", "mlp.down_proj"}


def test_the_plot_draws_the_runs_numbers(told, tmp_path):
    run, layers = explain(told), read_layers(told)
    assert len(layers.separation) == 5
    figure = draw(run, Layers(layers.separation, np.arange(5.0)))
    strength, separation, edit = figure.axes
    assert list(strength.lines[0].get_ydata()) == [0, 1, 2, 3, 4]
    assert np.array_equal(separation.lines[0].get_ydata(), layers.separation)
    drawn = {line.get_label(): list(line.get_ydata()) for line in edit.lines}
    assert drawn == kernels(run.chosen, 4) and "attn.o_proj" in drawn
    assert plot(run, told, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = plot(run, told, tmp_path / "a.html").read_text()
    assert page.count("<svg") == 1 and f"{layers.separation[3]:.3f}" in page and "<script" not in page
    assert " src=" not in page and "@import" not in page  # nothing is fetched


def test_a_hostile_name_is_text_in_the_plot(told, tmp_path):
    run = explain(told).model_copy(update={"model": "<script>alert(1)</script> $\\frac{", "behaviour": "x$y"})
    page = plot(run, told, tmp_path / "a.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (None, "has no directions.safetensors"),
        (b"nonsense", "cannot be read"),
        ({"vectors": np.zeros(3)}, "no class separation"),
        ({"separation": np.zeros((2, 2))}, "no class separation"),
        ({"separation": np.zeros(3), "strength": np.zeros(2)}, "other layers"),
    ],
)
def test_directions_that_cannot_be_plotted_are_named(tmp_path, tensors, words):
    path = tmp_path / "directions.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif tensors:
        save_file(tensors, path)
    with pytest.raises(InputError, match=words):
        read_layers(tmp_path)


def test_without_matplotlib_one_line_says_what_to_install(told, capsys, monkeypatch):
    monkeypatch.setattr("bruno.engine.explain_plot.find_spec", lambda name: None if name == "matplotlib" else name)
    assert main(["explain", str(told), "--plot", str(told / "a.png")]) == NoPlot.exit_code
    out, err = capsys.readouterr()
    assert "Chosen trial" in out and err.count("\n") == 1 and "matplotlib" in err and "bruno[plot]" in err
    assert main(["explain", str(told), "--plot", str(told / "a.gif")]) == 2


def test_explain_and_its_plot_import_no_torch(told):
    script = (
        "import sys; from bruno.engine.command import main\n"
        "code = main(['explain', sys.argv[1], '--plot', sys.argv[1] + '/p.png'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch came along'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(told)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
