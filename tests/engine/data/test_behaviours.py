"""A behaviour is data: shipped files load, wrong ones say where, and what the person set always wins."""

import pytest

from bruno.engine.data.behaviours import detector, load_behaviour, shipped, with_defaults
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
