"""`bruno explain`: the engine's explanation on the operator's terminal, sanitised; no torch, no engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    chosen = {"trial": 4, "refusals": 0, "prompts": 9, "kl": 0.25, "rule": "fewest", "parameters": {"a": 1.5}}
    report = {"model": "demo\x1b]0;title\x07", "behaviour": "over-refusal\u202e", "chosen": chosen}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_report_is_told_and_sanitised(bruno, saved: Path) -> None:
    said = bruno("explain", str(saved))
    assert said.code == 0, said.err
    assert "trial 4: 0/9 refused, KL 0.2500 nats" in said.out and "  a = 1.5" in said.out.splitlines()
    assert "\x1b" not in said.out and "\u202e" not in said.out and "<U+202E>" in said.out


def test_as_json_it_is_one_object(bruno, saved: Path) -> None:
    told = json.loads(bruno("explain", str(saved), "--json").out)
    assert told["kind"] == "explanation" and told["chosen"]["trial"] == 4


def test_what_cannot_be_told_is_one_line(bruno, saved: Path, tmp_path: Path) -> None:
    for arguments, words in ((("nowhere",), "holds no run"), ((str(saved), "--plot", "a.png"), "directions")):
        said = bruno("explain", *arguments)
        assert said.code == 2 and said.err.count("\n") == 1 and words in said.err
