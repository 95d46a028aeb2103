"""Answers in fixed buffers: the same tokens as when rows leave at once, for every family; capturing is tried on GPUs only."""

from __future__ import annotations

from dataclasses import replace

import pytest

import bruno.engine.model.generate as generation
from bruno.engine.edits.session import EditSession
from bruno.engine.model import graphs
from bruno.engine.model.capturable import wrong_token
from bruno.engine.model.chat_format import encode
from bruno.engine.model.generate import generate, prepare
from bruno.engine.model.prepared import PreparedPrompts
from tests.engine.model.test_generate import PROMPTS, RECURRENT, edits_for
from tests.engine.models import CONFIGS, VISION, loaded_model

FIXED = [kind for kind in (*CONFIGS, *VISION) if kind not in RECURRENT]


def in_pairs(_loaded: object, _prepared: object, _item: object, begins: list[int], _most: int) -> list[list[int]]:
    """Trials two by two, as a GPU might share them."""
    return [list(range(begin, min(begin + 2, len(begins)))) for begin in range(0, len(begins), 2)]


def in_buffers(prepared: PreparedPrompts) -> PreparedPrompts:
    return replace(prepared, graphs=True)


@pytest.mark.parametrize("kind", FIXED)
def test_every_family_writes_the_same_tokens_in_fixed_buffers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks that end in the middle of answers, key lengths that change, and rows that leave early."""
    monkeypatch.setattr(graphs, "_CHUNK", 3)
    monkeypatch.setattr(graphs, "_STEP", 8)
    monkeypatch.setattr(graphs, "_FEWEST", 1)
    monkeypatch.setattr(generation, "sharing", in_pairs)
    loaded = loaded_model(kind)
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None, rows=4)
    assert not prepared.graphs  # no GPU here
    assert wrong_token(loaded, prepared) == ""
    assert generate(loaded, in_buffers(prepared), max_new_tokens=9) == generate(loaded, prepared, max_new_tokens=9)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(edits_for(loaded))
        expected = generate(loaded, prepared, max_new_tokens=9, session=session, settled=long_enough)
        found = generate(loaded, in_buffers(prepared), max_new_tokens=9, session=session, settled=long_enough)
        for row, more in zip(flat(expected.ids), flat(found.ids), strict=True):
            assert more[: len(row)] == row  # a row that is settled may have been written on until the chunk's end
        assert generate(loaded, in_buffers(prepared), max_new_tokens=9, session=session) == generate(
            loaded, prepared, max_new_tokens=9, session=session
        )


def long_enough(text: str) -> bool:
    """Settles some answers early, by what they say."""
    return len(text) >= 3 and ord(text[2]) % 2 == 0


def flat(ids: list[list[list[int]]]) -> list[list[int]]:
    return [row for rows in ids for row in rows]


def test_buffers_are_made_once_and_grow_when_they_must() -> None:
    loaded = loaded_model("llama")
    prepared = in_buffers(prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None))
    generate(loaded, prepared, max_new_tokens=4)
    first = loaded.workspace.buffers
    generate(loaded, prepared, max_new_tokens=5)
    assert loaded.workspace.buffers is first
    generate(loaded, prepared, max_new_tokens=80)
    assert loaded.workspace.buffers is not first


def test_an_edit_that_does_nothing_takes_the_place_of_none() -> None:
    """What is launched must not depend on which writers a batch edits, nor on those that earlier ones did."""
    loaded = loaded_model("qwen2")
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.steady = True  # as on a GPU
        batch = edits_for(loaded)
        assert len(batch.edits) < len(loaded.writers)
        session.write(batch)
        generate(loaded, in_buffers(prepared), max_new_tokens=3, session=session)
        before = session.signature()
        fewer = replace(batch, edits={index: edit for index, edit in batch.edits.items() if index % 2})
        session.write(fewer)
        assert session.signature() == before
        steady = generate(loaded, in_buffers(prepared), max_new_tokens=6, session=session)
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(fewer)
        assert generate(loaded, prepared, max_new_tokens=6, session=session) == steady


@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
def test_a_trial_leaves_whole_when_enough_of_its_answers_are_settled(fixed: bool) -> None:
    loaded = loaded_model("llama")
    prepared = prepare(loaded, encode(loaded.tokenizer, PROMPTS), emit=lambda _: None, rows=4)
    prepared = in_buffers(prepared) if fixed else prepared
    with EditSession(loaded.writers, max_trials=4) as session:
        session.write(edits_for(loaded))
        whole = generate(loaded, prepared, max_new_tokens=30, session=session, settled=lambda text: len(text) > 2)
        assert whole.gave_up == [False] * 3
        assert min(whole.settled) > 4
        cut = generate(
            loaded,
            prepared,
            max_new_tokens=30,
            session=session,
            settled=lambda text: len(text) > 2,
            give_up_at=[0, 2, 100],
            rows=8,
        )
    assert cut.gave_up == [False, True, False]
    assert cut.settled[0] == whole.settled[0]
    assert 2 <= cut.settled[1] <= whole.settled[1]
    assert cut.ids[0] == whole.ids[0]
    assert any(not answer for answer in cut.ids[1])  # a later wave left it out
