"""Prompts are checked before anything is rented: what is known to fail is denied, what nobody knows is said."""

from __future__ import annotations

import sys

import pytest

from bruno.engine.data import check
from bruno.errors import Denied
from bruno.operator.prompts import check_prompts


@pytest.mark.parametrize("engine", [{"model": "demo"}, {"model": "x/y", "behaviour": "verbosity"}])
def test_what_ships_is_there(engine: dict) -> None:
    assert check_prompts(engine) == ()


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        ({"model": "demo", "data": {"bad": "./mine.txt"}}, "./mine.txt"),
        ({"model": "demo", "behaviour": "./own.toml"}, "./own.toml"),
        ({"model": "demo", "protection": {"sacred_directions": True, "sacred": "~/mmlu.jsonl"}}, "~/mmlu.jsonl"),
    ],
)
def test_a_file_of_this_machine_is_denied(engine: dict, named: str) -> None:
    with pytest.raises(Denied, match=named) as denied:
        check_prompts(engine)
    assert "bruno abliterate here" in str(denied.value)


def test_a_hub_that_does_not_answer_is_said_once_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(self, name, **_):
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(check.HfApi, "dataset_info", offline)
    (line,) = check_prompts({"model": "x/y", "behaviour": "refusal"})
    assert line.startswith("prompts: not checked.")
    assert "no route to host" in line
    assert len(asked) == 1


def test_it_imports_no_torch() -> None:
    import subprocess

    code = "import sys; from bruno.operator.prompts import check_prompts; check_prompts({'model': 'demo'});"
    done = subprocess.run(
        [sys.executable, "-c", code + "print({'torch', 'datasets', 'transformers'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
