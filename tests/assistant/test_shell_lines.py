"""Sentences that are shell lines: every byte of the line is kept, and a sentence about a model is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.assistant.grammar import Grammar
from bruno.assistant.shell_lines import instance_line, local_line
from bruno.intents import RunCommand
from bruno.settings.console import Settings

GRAMMAR = Grammar({name: gpu.names for name, gpu in Settings().gpus.items()})

LINES = [
    # sentence, command, target
    ("exec df -h on 101", "df -h", "101"),
    ("exec df -h on bruno-demo-abc", "df -h", "bruno-demo-abc"),
    ("exec df -h on instance 101", "df -h", "101"),
    ("exec df -h on the instance #101", "df -h", "101"),
    ("Exec nvidia-smi", "nvidia-smi", None),
    ("exec echo 'it  is  on' on 101", "echo 'it  is  on'", "101"),
    ('exec echo "on 102"', 'echo "on 102"', None),
    ("exec echo hello on world", "echo hello", "world"),
    ("exec kill 4711 on bruno-demo-1a2b", "kill 4711", "bruno-demo-1a2b"),
    ("!! echo hello on world", "echo hello on world", None),
    ("!!ls -la", "ls -la", None),
    ("!! grep 'a  b' x | head -n 3", "grep 'a  b' x | head -n 3", None),
    ("run nvidia-smi on 101", "nvidia-smi", "101"),
    ("run tail -n 5 'a log.txt' on bruno-qwen32b-1a2b", "tail -n 5 'a log.txt'", "bruno-qwen32b-1a2b"),
]


@pytest.mark.parametrize(("words", "command", "target"), LINES)
def test_lines_for_an_instance(words: str, command: str, target: str | None) -> None:
    intent = GRAMMAR.read(words)
    assert isinstance(intent, RunCommand)
    assert (intent.command, intent.target) == (command, target)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("run demo on an H200", "start_run"),
        ("run llama8b on 4090", "start_run"),
        ("run demo on a toaster", "start_run"),
        ("run demo on h300", "start_run"),
        ("run demo for 12 trials on a h100", "start_run"),
        ("run ./models/mine on an A100 SXM4", "start_run"),
        ("please run llama8b on 2 x RTX 4090", "start_run"),
        ("stop 101", "stop_instance"),
    ],
)
def test_a_sentence_about_a_model_is_no_shell_line(words: str, kind: str) -> None:
    intent = GRAMMAR.read(words)
    assert intent is not None
    assert intent.kind == kind


@pytest.mark.parametrize("words", ["!", "!!", "!! ", "exec", "exec ", "execute ls", "!!\x00", "exec a\x00b on 101"])
def test_what_is_no_line(words: str) -> None:
    assert instance_line(words) is None


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_every_byte_is_kept(line: str) -> None:
    line = line.strip()
    if line and not line.startswith("!"):
        assert local_line(f"! {line}") == local_line(f"!{line}") == line
        assert instance_line(f"! {line}") is None
    if line:
        intent = instance_line(f"!! {line}")
        assert intent is not None
        assert intent.command == line
        assert local_line(f"!! {line}") is None
