"""A behaviour is data: shipped files load, wrong ones say where, and what the person set always wins."""

import itertools
import re
from dataclasses import fields
from pathlib import Path

import pytest
from rapidfuzz import fuzz, process

from bruno.engine.data.behaviours import detector, load_behaviour, shipped, with_defaults
from bruno.engine.data.prompts import load_prompt_sets
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings

MINIMAL = """
name = "mine"
about = "refusing"
less = "answers"
[bad]
train = { source = "a.txt" }
search = { source = "b.txt" }
held_out = { source = "c.txt" }
[good]
train = { source = "d.txt" }
search = { source = "e.txt" }
held_out = { source = "f.txt" }
"""


def settings(**values):
    return EngineSettings.model_validate(values)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_behaviour_can_be_used(name):
    behaviour = load_behaviour(settings(behaviour=name))
    assert behaviour.name == name
    with_defaults(settings(), behaviour)
    detector(behaviour, settings())


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model": "demo"}, "over-refusal"),
        ({"model": "owner/name"}, "refusal"),
        ({"model": "demo", "behaviour": "refusal"}, "refusal"),
    ],
)
def test_the_default_behaviour(values, name):
    assert load_behaviour(settings(**values)).name == name


@pytest.mark.parametrize(
    ("values", "trials", "tokens"),
    [
        ({}, 7, 9),
        ({"search": {"trials": 200}}, 200, 9),  # given, though it equals the setting's own default
        ({"search": {"kl_ceiling": 0.1}}, 7, 9),
        ({"search": {"trials": 3}, "scoring": {"max_new_tokens": 4}}, 3, 4),
    ],
)
def test_what_was_set_wins_over_the_behaviours_defaults(tmp_path, values, trials, tokens):
    path = tmp_path / "b.toml"
    path.write_text(MINIMAL + "[defaults]\nsearch.trials = 7\nscoring.max_new_tokens = 9\n")
    behaviour = load_behaviour(settings(behaviour=str(path)))
    result, taken = with_defaults(settings(**values), behaviour)
    assert (result.search.trials, result.scoring.max_new_tokens) == (trials, tokens)
    assert {default.setting: default.value for default in taken} == {
        name: value
        for name, value, given in (
            ("search.trials", 7, "trials" in values.get("search", {})),
            ("scoring.max_new_tokens", 9, "scoring" in values),
        )
        if not given
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "is not TOML"),
        (MINIMAL.replace('less = "answers"', ""), "less: Field required"),
        (MINIMAL + "surprise = 1", "surprise"),
        (MINIMAL.replace('train = { source = "a.txt" }', ""), "bad.train: Field required"),
        (MINIMAL.replace('{ source = "a.txt" }', '{ source = "a.txt", colum = "x" }'), "colum"),
    ],
)
def test_a_wrong_file_says_where(tmp_path, text, words):
    path = tmp_path / "b.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as refusal:
        load_behaviour(settings(behaviour=str(path)))
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "words"), [("refusl", "Did you mean refusal"), ("xyz", "Known: "), ("no.toml", "No such file")]
)
def test_an_unknown_behaviour_suggests(name, words):
    with pytest.raises(InputError, match=words):
        load_behaviour(settings(behaviour=name))


@pytest.mark.parametrize("line", ["search.trails = 3", 'search.trials = "many"', "search.trials = 0"])
def test_wrong_defaults_are_an_error(tmp_path, line):
    path = tmp_path / "b.toml"
    path.write_text(MINIMAL + f"[defaults]\n{line}\n")
    with pytest.raises(InputError, match=r"search\.tr(ai|ia)ls"):
        with_defaults(settings(), load_behaviour(settings(behaviour=str(path))))


def test_a_wrong_marker_is_an_error(tmp_path):
    path = tmp_path / "b.toml"
    path.write_text(MINIMAL + '[markers]\ncore = ["("]\n')
    with pytest.raises(InputError, match="not a regular expression"):
        detector(load_behaviour(settings(behaviour=str(path))), settings())


def test_the_behaviours_markers_are_used(tmp_path):
    path = tmp_path / "b.toml"
    path.write_text(MINIMAL + '[markers]\ncore = ["nope"]\n')
    assert detector(load_behaviour(settings(behaviour=str(path))), settings()).shows("Nope!")


@pytest.mark.parametrize("name", ["hedging", "verbosity"])
def test_shipped_prompts_are_enough_paired_and_never_shared(name):
    run = settings(model="m", behaviour=name)
    notices = []
    found = load_prompt_sets(run, load_behaviour(run), notices.append)
    assert not notices
    parts = {field.name: getattr(found, field.name) for field in fields(found)}
    evaluations = parts.pop("held_out_evaluation")
    assert [len(texts) for texts in parts.values()] == [64, 64, 32, 32, 32, 32]
    assert {len(texts) for texts in evaluations.values()} == {16}
    for one, other in itertools.combinations({**parts, **evaluations}.values(), 2):
        assert not {text.casefold() for text in one} & {text.casefold() for text in other}
    for bad, good in zip(found.bad_train, found.good_train, strict=True):
        assert any(question in good for question in (re.findall(r"[^.?:]+\?", bad) or [bad])), (bad, good)
    seen = [*found.bad_train, *found.bad_search, *found.good_search]
    for text in (*found.bad_held_out, *found.good_held_out):
        near = process.extractOne(text, seen, scorer=fuzz.ratio)
        assert near[1] < 95, (text, near)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('scorer = "length"', r"scorer = 'length' needs a table \[length\]"),
        ('scorer = "phrases"', r"needs a table \[phrases\]"),
        ('scorer = "refusals"\nlength = { words = 9 }', r"\[length\] is read by scorer = 'length' only"),
        ('scorer = "length"\nlength = { words = 9 }\nmarkers = { core = ["x"] }', r"\[markers\] is read by scorer"),
        ('scorer = "length"\nlength = { words = 0 }', "length.words"),
        ('scorer = "phrases"\nphrases = { patterns = [] }', "phrases.patterns"),
        ('scorer = "phrases"\nphrases = { patterns = ["a$"] }', "has an anchor"),
        ('scorer = "taste"', "scorer"),
        ('evaluation = { x = { prompts = "a.txt" } }', "evaluation.x.about"),
        ('evaluation = { x = { prompts = "a.txt::split", about = "y" } }', "'split' is not key=value"),
    ],
)
def test_a_behaviour_says_what_its_scorer_needs_and_nothing_else(tmp_path, lines, words):
    path = tmp_path / "b.toml"
    path.write_text(lines + MINIMAL)
    with pytest.raises(InputError, match=words):
        load_behaviour(settings(behaviour=str(path)))


def test_a_limit_that_no_answer_can_reach_is_an_error():
    behaviour = load_behaviour(settings(behaviour="verbosity"))
    with pytest.raises(InputError, match=r"more than 60 words, and answers are read to 60 tokens.*120"):
        detector(behaviour, settings(scoring={"max_new_tokens": 60}))
    assert detector(behaviour, with_defaults(settings(), behaviour)[0]).limit == 60


def test_what_recognises_a_behaviour_is_part_of_its_identity():
    behaviours = [load_behaviour(settings(behaviour=name)) for name in shipped()]
    assert len({behaviour.recognition for behaviour in behaviours}) == 3  # both refusals have the same markers
    limit = behaviours[-1].model_copy(update={"length": behaviours[-1].length.model_copy(update={"words": 61})})
    assert limit.recognition != behaviours[-1].recognition


def test_the_guides_example_is_a_behaviour(tmp_path):
    guide = (Path(__file__).parents[3] / "docs" / "behaviours.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    path = tmp_path / "shouting.toml"
    path.write_text(example)
    run = settings(model="m", behaviour=str(path))
    behaviour = load_behaviour(run)
    run, taken = with_defaults(run, behaviour)
    assert [(default.setting, default.value) for default in taken] == [("scoring.max_new_tokens", 60)]
    found = load_prompt_sets(run, behaviour, lambda event: None)
    assert (len(found.bad_train), len(found.held_out_evaluation["long-texts"])) == (64, 16)
    told = detector(behaviour, run)
    assert told.count(["Wow! What an AMAZING day.", "Wow. Fine.", "Tuesday."]) == 1
    assert all(f"`{name}`" in guide for name in shipped())
