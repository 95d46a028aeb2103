"""A recipe read back, made again, and told apart from a changed one; and trials exported again by number."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import tomlkit

from bruno.engine import events as ev
from bruno.engine.command import main
from bruno.engine.explain import read_report
from bruno.engine.export.again import export_again, ranges, settings_of
from bruno.engine.recipe import KL_TOLERANCE, RecordedTrial, compare_scores, read_recipe, recipe_of, write_recipe
from bruno.engine.reproduce import Wish, open_run, reproduce, settings_for
from bruno.engine.search.storage import StudyMismatch
from bruno.engine.search.study import finished_trials
from bruno.errors import InputError
from tests.engine.test_explain import log_of
from tests.engine.test_run import finished, material, of, start  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def over(finished, tmp_path_factory) -> Path:  # noqa: F811
    """A finished run's folder with its log and its recipe, as the command leaves them."""
    return left_behind(tmp_path_factory.mktemp("over") / "run", *finished)


def left_behind(folder: Path, ran: Path, events: list) -> Path:
    """A run's folder as the command leaves it."""
    shutil.copytree(ran, folder)
    log_of(folder, *events)
    report = read_report(folder)
    assert report and report.chosen
    run = open_run(settings_of(folder), folder, lambda _: None)
    chosen = next(trial for trial in finished_trials(run.study) if trial.number == report.chosen.trial)
    saved = folder / "tiny-bruno"
    write_recipe(recipe_of(run, chosen, report.chosen.rule, saved), folder, saved)
    return folder


def again(file: Path, out: Path, **more):
    events: list = []
    out.mkdir(exist_ok=True)
    same = reproduce(Wish(file=file, out=out, **more), events.append)
    return same, [event.text for event in of(events, ev.Notice)]


def changed(over: Path, target: Path, change) -> Path:
    document = tomlkit.parse((over / "reproduce.toml").read_text())
    change(document)
    target.write_text(tomlkit.dumps(document))
    return target


def test_the_recipe_holds_what_the_report_says(over):
    recipe, report = read_recipe(over), json.loads((over / "report.json").read_text())
    assert recipe == read_recipe(over / "tiny-bruno")
    assert recipe.trial.parameters == report["chosen"]["parameters"] and recipe.trial.kl == report["chosen"]["kl"]
    kept = recipe.settings.model_dump(mode="json")
    assert {**kept, "out": ""} == {**report["settings"], "out": ""}
    assert set(recipe.weights) == {"model.safetensors"} and recipe.machine == {"device": "cpu", "dtype": "float32"}
    assert any(name.endswith("prompts") for name in recipe.identity)


def test_the_recorded_trial_is_made_again_to_the_byte(over, tmp_path):
    same, told = again(over / "reproduce.toml", tmp_path / "out")
    assert same is True and told[-1] == "Reproduced"
    assert (tmp_path / "out" / "tiny-bruno" / "model.safetensors").read_bytes() == (
        over / "tiny-bruno" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        again(over / "reproduce.toml", tmp_path / "out")


def test_the_whole_search_is_made_again(over, tmp_path):
    same, told = again(over, tmp_path / "out", search=True)
    assert same is True and told[-1] == "Reproduced"
    assert any("parameter direction_scope" in text and "chosen trial" in text for text in told)


def test_a_moved_model_is_named_and_still_the_same(over, tmp_path, material):  # noqa: F811
    shutil.copytree(material / "tiny", tmp_path / "moved")
    same, _ = again(over, tmp_path / "out", model=str(tmp_path / "moved"))
    assert same is True


def other_kernel(document):
    document["trial"]["parameters"]["attn.o_proj.max_weight"] = 0.123


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_kernel, ["kl", "sha256 of model.safetensors"]),
        (lambda d: d["weights"].update({"model.safetensors": "0" * 64}), ["sha256 of model.safetensors"]),
        (lambda d: d["trial"].update(refusals=d["trial"]["prompts"] + 1), ["refusals"]),
        (lambda d: d["model"].update(digest="feed"), ["model digest"]),
        (lambda d: d["identity"].update({"bad_train prompts": "12 prompts (0)"}), ["input bad_train prompts"]),
    ],
)
def test_what_differs_is_named_and_nothing_else(over, tmp_path, change, words):
    same, told = again(changed(over, tmp_path / "r.toml", change), tmp_path / "out")
    assert same is False
    verdict = told[-1].removeprefix("Not reproduced: ").split(" differ")[0]
    assert verdict == ", ".join(words)


def test_other_inputs_stop_it_before_the_model_is_loaded(over, tmp_path):
    events: list = []
    recipe = changed(over, tmp_path / "r.toml", lambda d: d["model"].update(digest="feed"))
    assert reproduce(Wish(file=recipe, out=tmp_path), events.append) is False
    assert not of(events, ev.ModelLoaded)


def test_another_version_is_named_and_decides_nothing(over, tmp_path):
    recipe = changed(over, tmp_path / "r.toml", lambda d: d["versions"].update(torch="1.0"))
    same, told = again(recipe, tmp_path / "out")
    assert same is True and told[-1] == "Reproduced, though these differ: version of torch"


def drop(*path):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format=2), "format"),
        (lambda d: d.update(extra=1), "extra"),
        (drop("trial"), "trial"),
        (drop("settings"), "settings"),
        (lambda d: d["trial"].update(number="1"), "trial.number"),
        (lambda d: d["trial"].update(kl=float("nan")), "trial.kl"),
        (lambda d: d["trial"]["parameters"].update({"attn.o_proj.reach": True}), "attn.o_proj.reach"),
        (lambda d: d["trial"]["parameters"].update({"attn.o_proj.reach": float("inf")}), "attn.o_proj.reach"),
        (lambda d: d["weights"].update({"../../x.safetensors": "0" * 64}), "weights"),
        (lambda d: d["weights"].update({"model.safetensors": "abc"}), "weights"),
        (lambda d: d["settings"]["search"].update(trials=0), "settings.search.trials"),
        (lambda d: d["settings"].update(unknown=1), "settings.unknown"),
        (lambda d: d["model"].update(commit="--option"), "model.commit"),
    ],
)
def test_a_hand_edited_file_is_one_line(over, tmp_path, capsys, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    path = changed(over, tmp_path / "r.toml", change)
    assert main(["reproduce", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err and not (tmp_path / "reproduced").exists()


@pytest.mark.parametrize("content", [b"", b"a = ", b"\xff\xfe", b"[" * 5000])
def test_what_is_no_recipe_is_one_line(tmp_path, content):
    (tmp_path / "r.toml").write_bytes(content)
    for path in (tmp_path / "r.toml", tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            read_recipe(path)


@pytest.mark.parametrize(
    "change",
    [
        drop("trial", "parameters", "attn.o_proj.reach"),
        lambda d: d["trial"]["parameters"].update(other=1.0),
        lambda d: d["trial"]["parameters"].update({"attn.o_proj.reach": "far"}),
        lambda d: d["trial"]["parameters"].update(direction_scope="everywhere"),
    ],
)
def test_parameters_that_are_no_trial_are_refused(over, tmp_path, change):
    with pytest.raises(InputError, match=r"trial\.parameters"):
        again(changed(over, tmp_path / "r.toml", change), tmp_path / "out")


def test_the_files_word_alone_runs_no_code_and_writes_to_no_storage(over, tmp_path):
    def change(document):
        document["settings"]["trust_remote_code"] = True
        document["settings"]["search"]["storage"] = "sqlite:///elsewhere.db"
        document["settings"]["out"] = "/elsewhere"

    recipe = read_recipe(changed(over, tmp_path / "r.toml", change))
    with pytest.raises(InputError, match="--trust-remote-code"):
        settings_for(recipe, Wish(file=tmp_path, out=tmp_path / "out"))
    settings = settings_for(recipe, Wish(file=tmp_path, out=tmp_path / "out", trust_remote_code=True))
    assert settings.search.storage == "" and settings.out == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("kl", "tokens", "same"),
    [
        (0.5, None, [True, True]),
        (0.5 * (1 + KL_TOLERANCE / 2), None, [True, True]),
        (0.5 * (1 + KL_TOLERANCE * 2), None, [True, False]),
        (0.5, 0.1, [True, True, False]),
    ],
)
def test_scores_are_the_same_within_the_stated_tolerance(kl, tokens, same):
    recorded = RecordedTrial(number=1, rule="", refusals=1, prompts=2, kl=0.5, parameters={})
    found = {"refusals": 1, "prompts": 2, "kl": kl, "kl_tokens": tokens}
    assert [check.same for check in compare_scores(recorded, found)] == same


def test_several_trials_are_exported_from_one_loading(material, tmp_path):  # noqa: F811
    (tmp_path / "ran").mkdir()
    ran, _ = start(material, tmp_path / "ran", search={"stop_dominated": False})  # so that every trial has a count
    folder = left_behind(tmp_path / "moved", tmp_path / "ran", ran)
    events: list = []
    numbers = [trial.number for trial in finished_trials(open_run(settings_of(folder), folder, lambda _: None).study)]
    chosen = read_recipe(folder).trial.number
    others = [number for number in numbers if number != chosen][:2]
    saved = export_again(folder, settings_of(folder), [*others, others[0]], events.append, name="again")
    assert len(of(events, ev.ModelLoaded)) == 1 and [path.name for path in saved] == [
        "again",
        f"again-trial{others[1]}",
    ]
    for number, path in zip(others, saved, strict=True):
        recipe = read_recipe(path)
        assert recipe.trial.number == number
        assert tomllib.loads((path / "reproduce.toml").read_text())["weights"]["model.safetensors"]
    assert read_recipe(folder).trial.number == chosen  # the run's own stays
    assert saved[0].joinpath("model.safetensors").read_bytes() != saved[1].joinpath("model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "no trial was named"),
        (("--trial", "x"), 2, "invalid int"),
        (("--trial", "99", "--trial", "1"), 2, "No scored trial 99"),
        (("--trial", "1", "--name", "../up"), 2, "no folder name"),
    ],
)
def test_wrong_exports_are_one_line_and_leave_the_runs_story(over, tmp_path, capsys, arguments, code, words):
    folder = tmp_path / "run"
    shutil.copytree(over, folder)
    before = (folder / "events.jsonl").read_bytes()
    assert main(["export", str(folder), *arguments]) == code
    out, err = capsys.readouterr()
    assert len((out + err).splitlines()) == 1 and words in out + err
    assert (folder / "events.jsonl").read_bytes() == before


def test_a_run_of_something_else_is_not_exported(over, tmp_path, material):  # noqa: F811
    folder = tmp_path / "run"
    shutil.copytree(over, folder)
    settings = settings_of(folder)
    other = settings.model_copy(update={"seed": 9})
    with pytest.raises(StudyMismatch, match="seed"):
        export_again(folder, other, [1], lambda _: None)
    with pytest.raises(InputError, match="holds no run"):
        settings_of(material)


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([3, 1, 2, 7, 9, 10], "1 to 3, 7, 9 to 10")])
def test_ranges(numbers, text):
    assert ranges(numbers) == text
