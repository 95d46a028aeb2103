"""A conversation with a real (tiny) model: turns kept, oldest dropped, one model in memory at a time."""

import gc
import io
import weakref

import pytest

from bruno.engine import chat
from bruno.engine.log import printable
from bruno.engine.model.chat_format import encode_conversation
from bruno.settings.engine import EngineSettings
from tests.engine.models import loaded_model


def talk(longest=6, **data):
    return chat.Talk(EngineSettings.model_validate({"data": data}), longest)


def test_pieces_are_the_answer_and_turns_are_kept():
    loaded, heard, conversation = loaded_model("llama"), [], talk()
    text = conversation.answer(loaded, "hello there", heard.append)
    assert "".join(heard).strip() == text
    conversation.answer(loaded, "and then?", heard.append)
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    conversation.forget()
    assert not conversation.turns


def test_the_answer_is_the_models_own_greedy_one():
    import torch

    loaded = loaded_model("llama")
    ids = torch.tensor([encode_conversation(loaded.tokenizer, [{"role": "user", "content": "hello"}])])
    out = loaded.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    expected = loaded.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert talk().answer(loaded, "hello", lambda piece: None) == expected


def test_a_conversation_longer_than_the_context_loses_its_oldest_turns():
    loaded, conversation = loaded_model("llama"), talk()
    for number in range(8):
        conversation.answer(loaded, f"question {number} " + "word " * 8, lambda piece: None)
    assert len(conversation.turns) < 16
    assert conversation.turns[-2]["content"].startswith("question 7")
    assert len(conversation._ids(loaded)) <= 256 - 6


def test_ctrl_c_keeps_what_was_said():
    loaded, conversation, heard = loaded_model("llama"), talk(longest=200), []

    def interrupt(piece):
        heard.append(piece)
        if len(heard) == 1:
            raise KeyboardInterrupt

    text = conversation.answer(loaded, "hello", interrupt)
    assert heard[-1] == " [stopped]"
    assert conversation.turns[-1] == {"role": "assistant", "content": text}


@pytest.fixture
def loads(monkeypatch):
    """`loading.load` replaced by tiny models; notes which were alive whenever one is loaded."""
    alive, order = weakref.WeakSet(), []

    def load(settings, emit):
        gc.collect()
        order.append((settings.model, len(alive)))
        loaded = loaded_model("llama", seed=len(settings.model))
        object.__setattr__(loaded, "name", settings.model)
        alive.add(loaded.model)
        return loaded

    monkeypatch.setattr(chat, "load", load)
    return order


@pytest.mark.parametrize("json_lines", [True, False])
def test_two_models_are_never_in_memory_together(loads, monkeypatch, json_lines):
    settings = EngineSettings(model="one")
    talks = {name: chat.Talk(settings, 3) for name in ("one", "three")}
    out = io.StringIO()
    if json_lines:
        chat._in_json(settings, talks, io.StringIO('{"message": "a"}\n{"message": "b"}\n{"message": "c"}\n'), out)
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\nc\n"))
        monkeypatch.setattr("sys.stdout", out)
        chat._in_terminal(settings, talks)
    assert [name for name, _ in loads] == ["one", "three", "one", "three"]  # every second load is saved
    assert [alive for _, alive in loads] == [0, 0, 0, 0]
    assert all(len(each.turns) == 6 for each in talks.values())


def test_a_models_answer_cannot_reach_the_terminal():
    assert printable("a\tb\n\x1b[2J\x07\u202ec") == "a\tb\n\\x1b[2J\\x07\\u202ec"
