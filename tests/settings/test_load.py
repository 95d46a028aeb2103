"""Settings: precedence, nested fields, booleans, unknown names; and that config.toml says what the settings are."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from bruno.errors import InputError
from bruno.settings.console import Settings
from bruno.settings.fields import all_settings, short_names
from bruno.settings.load import load
from bruno.settings.render import document, travelling

ROOT = Path(__file__).parents[2]


def read(argv=(), environ=None, cwd=None, tmp_path=None):
    return load(list(argv), environ={"BRUNO_HOME": "/nonexistent", **(environ or {})}, cwd=cwd or Path("/nonexistent"))


def test_precedence_field_by_field(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 1\n[search]\ntrials = 10\nkl_ceiling = 0.5\nwarm_start = false\n")
    environ = {"BRUNO_SEARCH__TRIALS": "20", "BRUNO_SEARCH__KL_CEILING": "0.4"}
    settings = read(["--search.trials", "30"], environ, tmp_path)
    assert settings.search.trials == 30
    assert settings.search.kl_ceiling == 0.4
    assert settings.search.warm_start is False
    assert settings.seed == 1
    assert settings.search.auto_select is True


@pytest.mark.parametrize(
    ("file", "environ", "trials"),
    [
        ("", {}, 40),
        ("[search]\ntrials = 7\n", {}, 0),
        ("", {"BRUNO_SEARCH__TRIALS": "7"}, 0),
        ('[models.demo]\nid = "demo"\nweights_gb = 0.27\ntrials = 9\n', {"BRUNO_SEARCH__TRIALS": "7"}, 9),
    ],
)
def test_a_shipped_number_of_trials_gives_way_to_one_that_was_said(tmp_path, file, environ, trials) -> None:
    """0: the search's own number counts. A table of the person's own is said too, and is about that model alone."""
    (tmp_path / "config.toml").write_text(file)
    demo = read(environ=environ, cwd=tmp_path).models["demo"]
    assert demo.trials == trials
    assert (demo.hours > 0) == (trials == 40)


def test_the_generated_file_says_nothing_of_a_model() -> None:
    assert read(environ={"BRUNO_SEARCH__TRIALS": "7"}, cwd=ROOT).models["demo"].trials == 0


def test_nothing_said_overrides_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("trust_remote_code = true\n[search]\nwarm_start = false\n")
    settings = read(["demo"], cwd=tmp_path)
    assert (settings.trust_remote_code, settings.search.warm_start) == (True, False)
    settings = read(["demo", "--no-trust-remote-code", "--warm-start"], cwd=tmp_path)
    assert (settings.trust_remote_code, settings.search.warm_start) == (False, True)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--trust-remote-code"], True),
        (["--trust-remote-code", "true"], True),
        (["--trust-remote-code", "demo"], True),
        (["--trust-remote-code=false"], False),
        (["--trust-remote-code", "off"], False),
        (["--no-trust-remote-code"], False),
        ([], False),
    ],
)
def test_booleans(argv: list[str], expected: bool) -> None:
    assert read(argv).trust_remote_code is expected


@pytest.mark.parametrize("flag", ["--no-warm-start", "--search.no-warm-start", "--no-search.warm-start"])
def test_a_nested_boolean_is_denied_in_every_spelling(flag: str) -> None:
    assert read([flag]).search.warm_start is False


def test_model_stands_alone_or_is_named() -> None:
    assert read(["demo"]).model == "demo"
    assert read(["--model", "demo"]).model == "demo"
    assert read(["--trials", "3", "org/name"]).model == "org/name"


def test_only_what_was_said_is_set() -> None:
    settings = read(["demo", "--trials", "8"])
    assert settings.search.model_fields_set == {"trials"}
    assert tomllib.loads(travelling(settings)) == {"model": "demo", "search": {"trials": 8}}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trails", "8"], "Did you mean trials"),
        (["--search.trails", "8"], "search.trials"),
        (["--trials"], "needs a value"),
        (["--trials", "many"], "search.trials on the command line"),
        (["--trials", "0"], "greater than or equal to 1"),
        (["--warm-start=maybe"], "true or false"),
        (["--models", "x"], "config.toml"),
        (["one", "two"], "one model at a time"),
        (["-x"], "unknown option"),
        (["--config", "/no/such.toml"], "no config file"),
        (["--norm-mode", "diagonal"], "edit.norm_mode"),
    ],
)
def test_bad_arguments_are_one_clear_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails = 3", "unknown setting trails"),
        ("[search]\ntrails = 3", "search.trials"),
        ("[serch]\ntrials = 3", "unknown setting serch"),
        ("search = 3", "is a table"),
        ("[search]\ntrials = 'x'", "config.toml"),
        ("[search\n", "cannot be read"),
        ("[models.mine]\nid = 'a/b'\nweights_gb = 2\nsise = 1", "models.mine.sise"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read(cwd=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_utf16_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes("seed = 1".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-8"):
        read(cwd=tmp_path)


def test_environment_unknown_name_is_an_error() -> None:
    with pytest.raises(InputError, match=r"BRUNO_SEARCH__TRAILS.*search\.trials"):
        read(environ={"BRUNO_SEARCH__TRAILS": "3"})


def test_a_new_alias_stays_beside_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[models.mine]\nid = 'a/b'\nweights_gb = 2\n")
    models = read(cwd=tmp_path).models
    assert models["mine"].id == "a/b"
    assert models["demo"].id == "demo"


def test_every_setting_is_documented() -> None:
    undocumented = [name for name, setting in all_settings().items() if not setting.description]
    assert undocumented == []
    assert short_names()["trials"] == "search.trials"


def test_shipped_config_is_the_defaults() -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    assert text == document(), "config.toml is generated: bruno config show --defaults > config.toml"
    assert Settings.model_validate(tomllib.loads(text)) == Settings()
