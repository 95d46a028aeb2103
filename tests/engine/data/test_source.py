"""The one-string form of a source: what is written is what is read back, and wrong ones say where."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bruno.engine.data.behaviours import load_behaviour
from bruno.engine.data.check import check_sources, sources_of
from bruno.engine.data.source import Source
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings, Protection


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("owner/name", {}),
        ("prompts.txt", {}),
        (
            "owner/name::config=en,split=train[:200],column=text,stream=true",
            {"config": "en", "split": "train[:200]", "column": "text", "stream": True},
        ),
        ("owner/name:: split = test[500:700] , column = a b ", {"split": "test[500:700]", "column": "a b"}),
        ("owner/name::rows=20,offset=5", {"rows": 20, "offset": 5}),
        ("shipped:verbosity::split=search,kind=bad", {"split": "search", "kind": "bad"}),
    ],
)
def test_the_string_form(text, fields):
    source = Source.parse(text)
    assert source == Source(source=text.split("::")[0], **fields)
    assert Source.parse(str(source)) == source
    assert Source.model_validate(text) == source


WORDS = st.text("abcXYZ019_-. ", min_size=1, max_size=9).map(str.strip).filter(bool)


@settings(max_examples=200, deadline=None)
@given(
    st.from_regex(r"[a-z]{1,5}/[a-z.]{1,9}", fullmatch=True),
    st.fixed_dictionaries(
        {},
        optional={
            "config": WORDS,
            "column": WORDS,
            "kind": WORDS,
            "stream": st.booleans(),
            "split": st.sampled_from(["test", "train[:9]", "train[3:9]", "a-b.c[-4:]"]),
            "rows": st.integers(0, 99),
            "offset": st.integers(0, 99),
        },
    ),
)
def test_every_source_reads_back_as_it_was_written(name, fields):
    try:
        source = Source(source=name, **fields)
    except ValidationError:
        assume(False)
    assert Source.parse(str(source)) == source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "source"),
        ("owner/name::colum=text", "colum"),
        ("owner/name::split", "'split' is not key=value"),
        ("owner/name::split=train,split=test", "given twice"),
        ("owner/name::split=train[5%:]", "not of the form"),
        ("owner/name::split=train[9:3]", "names no rows"),
        ("owner/name::split=train[:9],rows=3", "give one of them"),
        ("owner/name::stream=perhaps", "stream"),
        ("owner/name::stream=true", "needs to know its rows"),
        ("owner/name::stream=true,split=train[-9:]", "needs to know its rows"),
        ("owner/name::stream=true,split=train[9:]", "needs to know its rows"),
        ("owner/name::rows=-1", "rows"),
    ],
)
def test_wrong_strings_say_where(text, words):
    with pytest.raises(InputError, match="cannot be used") as refusal:
        Source.parse(text)
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("split", "rows", "offset", "length", "expected"),
    [
        ("train", 0, 0, 5, range(5)),
        ("train[:3]", 0, 0, 5, range(3)),
        ("train[2:]", 0, 0, 5, range(2, 5)),
        ("train[1:4]", 0, 0, 5, range(1, 4)),
        ("train[-2:]", 0, 0, 5, range(3, 5)),
        ("train[:-2]", 0, 0, 5, range(3)),
        ("train[:5]", 0, 0, 5, range(5)),
        ("train", 2, 1, 5, range(1, 3)),
        ("train", 0, 4, 5, range(4, 5)),
        ("train[:6]", 0, 0, 5, "has 5 rows where rows 0 to 6"),
        ("train[-6:]", 0, 0, 5, "has 5 rows where rows -6 to the end"),
        ("train[5:]", 0, 0, 5, "has 5 rows"),
        ("train", 3, 3, 5, "has 5 rows where rows 3 to 6"),
    ],
)
def test_the_rows_that_are_meant(split, rows, offset, length, expected):
    source = Source(source="owner/name", split=split, rows=rows, offset=offset)
    if isinstance(expected, range):
        assert source.span(length) == expected
    else:
        with pytest.raises(InputError, match=expected):
            source.span(length)


def test_the_sources_of_a_run_follow_its_settings():
    def named(**values):
        run = EngineSettings.model_validate({"model": "demo", **values})
        return [str(source) for source in sources_of(run, load_behaviour(run))]

    assert len(named()) == 6 and all(name.startswith("demo::") for name in named())
    assert "mine.txt" in named(data={"bad": "mine.txt"}) and len(named(data={"bad": "mine.txt"})) == 4
    defaults = Protection()
    helped = named(protection={"orthogonalize_directions": True})
    assert helped[6:] == [str(Source.parse(text)) for text in (defaults.helpful, defaults.plain)]
    both = named(protection={"orthogonalize_directions": True, "sacred_directions": True})
    assert both[8:] == [str(Source.parse(defaults.sacred))]


def test_every_problem_of_a_run_is_a_line(tmp_path):
    (tmp_path / "model.bin").touch()
    run = EngineSettings.model_validate(
        {"model": "demo", "data": {"bad": "nowhere.txt", "good": str(tmp_path / "model.bin")}}
    )
    behaviour = load_behaviour(run)
    first, second = check_sources(run, behaviour)
    assert first.startswith("There is no prompt file nowhere.txt") and second.startswith("Prompts cannot be read from")
    assert check_sources(EngineSettings(model="demo"), behaviour) == []
    run = EngineSettings.model_validate({"model": "demo", "data": {"bad": "x::y", "good": str(tmp_path)}})
    assert "'y' is not key=value" in check_sources(run, behaviour)[0]
    run = EngineSettings.model_validate({"model": "demo", "data": {"good": str(tmp_path)}})
    assert check_sources(run, behaviour)[0].startswith(f"The folder {tmp_path} holds no data set")
