"""The whole pipeline on a tiny real model: what it leaves behind, and where each later start begins."""

import errno
import io
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bruno.engine import events as ev
from bruno.engine.export import write as export_module
from bruno.engine.export.write import ExportFailed
from bruno.engine.model.chat_format import encode
from bruno.engine.place import short_name
from bruno.engine.run import Run, run
from bruno.engine.scoring.result import Scores, Stopped
from bruno.engine.scoring.scores import kl_divergence, wilson_interval
from bruno.engine.search.storage import StudyMismatch
from bruno.engine.search.study import Stop
from bruno.errors import BrunoError
from bruno.settings.engine import EngineSettings
from tests.engine.models import tiny_model, tiny_tokenizer

BEHAVIOUR = """
name = "coin"
about = "tossing a coin"
less = "tosses fewer"
[bad]
train = {{ source = "{0}/bad_train.txt" }}
search = {{ source = "{0}/bad_search.txt" }}
held_out = {{ source = "{0}/bad_held.txt" }}
[good]
train = {{ source = "{0}/good_train.txt" }}
search = {{ source = "{0}/good_search.txt" }}
held_out = {{ source = "{0}/good_held.txt" }}
[markers]
core = ['[a-m]\\w*']
[defaults.search]
trials = 6
[defaults.scoring]
max_new_tokens = 5
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A model folder, prompts and a behaviour, made once."""
    folder = tmp_path_factory.mktemp("material")
    tiny_model("llama").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    for side, word in (("bad", "forbid"), ("good", "allow")):
        for part, count in (("train", 12), ("search", 6), ("held", 5)):
            texts = [f"{word} {part} number {n}" for n in range(count)]
            (folder / f"{side}_{part}.txt").write_text("\n".join(texts))
    (folder / "coin.toml").write_text(BEHAVIOUR.format(folder))
    return folder


def settings(material, **values):
    base = {
        "model": str(material / "tiny"),
        "behaviour": str(material / "coin.toml"),
        "loading": {"dtype": ["float32"]},
    }
    return EngineSettings.model_validate({**base, **values})


def start(material, folder, **values):
    events = []
    done = run(settings(material, **values), folder, events.append)
    return events, done


def told(events):
    """Numbers of the trials that have their result: a count, or that another is certain to beat them."""
    return [event.trial for event in events if isinstance(event, ev.TrialScored | ev.TrialStopped)]


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    events, done = start(material, folder)
    assert done
    return folder, events


def test_the_story_is_told_in_order(finished):
    _, events = finished
    order = [ev.RunStarted, ev.ModelLoaded, ev.InitialScores, ev.TrialStarted, ev.TrialScored, ev.Progress]
    order += [ev.TrialSelected, ev.ModelSaved, ev.HeldOut, ev.Finished]
    firsts = [next(n for n, event in enumerate(events) if isinstance(event, kind)) for kind in order]
    assert firsts == sorted(firsts)
    assert told(events) == [1, 2, 3, 4, 5, 6]  # the behaviour's default, as the notice says
    assert any("search.trials = 6" in notice.text for notice in of(events, ev.Notice))


def test_the_report_says_what_the_log_says(finished):
    folder, events = finished
    report = json.loads((folder / "report.json").read_text())
    chosen, held = of(events, ev.TrialSelected)[0], of(events, ev.HeldOut)[0]
    scored = {event.trial: event for event in of(events, ev.TrialScored)}[chosen.trial]
    assert (chosen.refusals, chosen.kl) == (scored.refusals, scored.kl)
    assert report["chosen"]["trial"] == chosen.trial and report["chosen"]["kl"] == chosen.kl
    assert report["held_out"]["after"] == held.after and held.prompts == 5
    assert held.after_interval == wilson_interval(held.after, 5)
    initial = of(events, ev.InitialScores)[0]
    assert report["initial_refusals"] == [initial.refusals, initial.prompts]
    assert json.loads((Path(report["saved"]) / "report.json").read_text()) == report


def test_the_saved_model_is_the_one_that_was_searched(material, finished):
    folder, events = finished
    saved = Path(of(events, ev.ModelSaved)[0].path)
    assert saved == folder / "tiny-bruno"
    prompts = encode(tiny_tokenizer(), (material / "good_search.txt").read_text().splitlines())

    def logprobs(path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.inference_mode():
            rows = [model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts.ids]
        return torch.stack(rows)

    kl = kl_divergence(logprobs(material / "tiny"), logprobs(saved))
    assert kl == pytest.approx(of(events, ev.TrialSelected)[0].kl, rel=1e-3, abs=1e-6)


def test_started_again_it_repeats_nothing(material, finished, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder)
    events, done = start(material, folder)
    assert done and not of(events, ev.TrialStarted) and not of(events, ev.InitialScores)
    assert of(events, ev.Resumed)[0].completed == 6
    assert of(events, ev.TrialSelected)[0].trial == of(finished[1], ev.TrialSelected)[0].trial
    held, before = of(events, ev.HeldOut)[0], of(finished[1], ev.HeldOut)[0]
    assert held.model_dump(exclude={"time"}) == before.model_dump(exclude={"time"})


def test_more_trials_keep_the_saved_model_and_save_another_beside_it(material, finished, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(finished[0], folder)
    before = (folder / "tiny-bruno" / "model.safetensors").read_bytes()
    (folder / "study-note").touch()
    events, _ = start(material, folder, search={"trials": 12, "kl_ceiling": 1e-9})
    assert [event.trial for event in of(events, ev.TrialStarted)] == list(range(7, 13))
    chosen = of(events, ev.TrialSelected)[0]
    path = Path(of(events, ev.ModelSaved)[0].path)
    if chosen.trial != of(finished[1], ev.TrialSelected)[0].trial:
        assert path.name == f"tiny-bruno-trial{chosen.trial}" and path.is_dir()
    assert (folder / "tiny-bruno" / "model.safetensors").read_bytes() == before


def test_a_full_disk_keeps_the_study_and_the_next_start_only_saves(material, tmp_path, monkeypatch):
    real = shutil.copyfile

    def full(source, target, **options):
        if str(target).endswith(".safetensors"):
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target, **options)

    monkeypatch.setattr(export_module.shutil, "copyfile", full)
    events = []
    with pytest.raises(ExportFailed, match="the disk is full"):
        run(settings(material), tmp_path, events.append)
    assert len(told(events)) == 6 and not of(events, ev.ModelSaved)
    assert not [path for path in tmp_path.iterdir() if "tiny" in path.name]
    monkeypatch.setattr(export_module.shutil, "copyfile", real)
    events, done = start(material, tmp_path)
    assert done and not of(events, ev.TrialStarted)
    assert (tmp_path / "tiny-bruno" / "model.safetensors").exists()


def test_a_small_disk_is_told_at_the_start(material, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    events = []
    with pytest.raises(ExportFailed, match="are free"):
        run(settings(material, search={"trials": 1}), tmp_path, events.append)
    warning = next(
        n for n, event in enumerate(events) if isinstance(event, ev.Notice) and "Saving will need" in event.text
    )
    assert warning < next(n for n, event in enumerate(events) if isinstance(event, ev.InitialScores))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scoring": {"max_new_tokens": 4}}, "scoring.max_new_tokens: 5 then, 4 now"),
        ({"seed": 5}, "seed: 0 then, 5 now"),
        ({"scoring": {"bad_count": 4}}, "bad_search prompts: 6 prompts"),
        ({"edit": {"norm_mode": "none"}}, "edit.norm_mode"),
        ({"directions": {"project_good_mean": False}}, "directions.project_good_mean: true then, false now"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(material, finished, tmp_path, values, words):
    folder = tmp_path / "other"
    shutil.copytree(finished[0], folder)
    with pytest.raises(StudyMismatch, match=words):
        start(material, folder, **values)


def test_settings_that_change_no_score_may_change(material, finished, tmp_path):
    folder = tmp_path / "same"
    shutil.copytree(finished[0], folder)
    _, done = start(material, folder, loading={"dtype": ["float32"], "batch_size": 3}, scoring={"held_out": False})
    assert done


def test_nothing_is_saved_when_that_is_off(material, tmp_path):
    events, done = start(material, tmp_path, export={"save": False}, scoring={"held_out": False}, search={"trials": 1})
    assert done and not of(events, ev.ModelSaved) and not of(events, ev.HeldOut)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["saved"] is None and report["held_out"] is None


def test_batches_of_trials_give_whole_blocks(material, tmp_path):
    values = {"search": {"trials": 5, "trial_batch": 3}, "scoring": {"held_out": False, "kl_divergence_tokens": 2}}
    events, done = start(material, tmp_path, export={"save": False}, **values)
    assert done and told(events) == [1, 2, 3, 4, 5]
    assert all(event.kl_tokens is not None for event in of(events, ev.TrialScored))


def test_as_on_an_accelerator_the_study_is_kept_beside(material, tmp_path, monkeypatch):
    """Each batch drawn while the one before is scored, by another process: a whole run, which more trials go on from."""
    monkeypatch.setattr(Run, "draws_ahead", True)
    events, whole = start(material, tmp_path, search={"trials": 6, "trial_batch": 2})
    assert whole
    assert told(events) == [1, 2, 3, 4, 5, 6]
    assert [event.completed for event in of(events, ev.Progress)] == [2, 4, 6]
    assert len(of(events, ev.Finished)) == 1
    again, whole = start(material, tmp_path, search={"trials": 8, "trial_batch": 2})
    assert whole
    assert told(again) == [7, 8]


def test_beaten_trials_are_among_those_that_an_interrupted_run_has_saved(material, tmp_path, monkeypatch):
    stop, scored = Stop(), []

    @contextmanager
    def asked_to_stop():
        yield stop

    def score(self, known, edits, rows=0):
        scored.append(1)
        stop.requested = len(scored) == 3
        beaten = len(scored) == 2
        return [Stopped(1, 6, 0.5, 0.1, 1) if beaten else Scores(1, 6, 0.4) for _ in edits]

    monkeypatch.setattr("bruno.engine.run.stop_on_signals", asked_to_stop)
    monkeypatch.setattr("bruno.engine.scoring.scores.Scorer.score_against", score)
    events, whole = start(material, tmp_path)
    assert not whole
    assert of(events, ev.Interrupted)[0].completed == 3


def test_without_a_terminal_the_menu_says_what_it_does_instead(material, finished, tmp_path, monkeypatch):
    folder = tmp_path / "menu"
    shutil.copytree(finished[0], folder)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    events, _ = start(material, folder, search={"auto_select": False}, scoring={"held_out": False})
    assert any("No terminal for a menu" in notice.text for notice in of(events, ev.Notice))


def test_a_study_without_scores_says_so(material, tmp_path, monkeypatch):
    def broken(self, *_args):
        raise MemoryError

    monkeypatch.setattr("bruno.engine.scoring.scores.Scorer.score_against", broken)
    with pytest.raises(BrunoError, match="No trial has a score"):
        start(material, tmp_path, search={"trials": 1})


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen2.5-7B", "Qwen2.5-7B"), ("/a/b c/", "b-c"), ("demo", "demo"), ("..", "model"), ("x/é!", "é")],
)
def test_names_of_saved_models(model, name):
    assert short_name(model) == name
