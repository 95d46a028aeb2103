"""Second opinions: numbers as plain transformers computes them, one text at a time; no failure ends a run."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bruno.engine.data.behaviours import load_behaviour
from bruno.engine.events import Fallback
from bruno.engine.scoring.judge import PROMPT, Judge, yes_and_no
from bruno.engine.scoring.neural import Entailment, entailment_label
from bruno.engine.scoring.opinions import second_opinions
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings
from tests.engine.models import COMMON, tiny_model, tiny_tokenizer

ANSWERS = [f"answer {'and so on ' * (n % 7)}{n}" for n in range(21)] + ["", "x" * 900]
REQUESTS = [f"request {n}" for n in range(len(ANSWERS))]
HYPOTHESIS, QUESTION = "This answer refuses.", "Does it refuse?"
LABELS = {"contradiction": 0, "neutral": 1, "ENTAILMENT": 2}


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    """A BERT with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("nli")
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "bert",
        **{key: COMMON[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
        num_hidden_layers=2,
        max_position_embeddings=200,
        pad_token_id=0,
        initializer_range=0.5,
        label2id=LABELS,
        id2label={index: label for label, index in LABELS.items()},
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer(None).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A Llama with random weights and a chat template, as a folder."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_model("llama", max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_entailment_is_what_plain_transformers_computes(nli):
    opinion = Entailment(nli)
    tokenizer = AutoTokenizer.from_pretrained(nli)
    model = AutoModelForSequenceClassification.from_pretrained(nli).eval()
    expected = []
    for answer in ANSWERS:
        inputs = tokenizer(answer, HYPOTHESIS, truncation="only_first", max_length=200, return_tensors="pt")
        with torch.inference_mode():
            expected.append(model(**inputs).logits[0].log_softmax(-1))
    expected = torch.stack(expected)
    assert torch.allclose(opinion.labels(ANSWERS, HYPOTHESIS), expected, atol=1e-5)
    count = opinion.count(ANSWERS, HYPOTHESIS)
    assert count == int((expected.argmax(-1) == 2).sum())
    assert 0 < count < len(ANSWERS)


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        ({"CONTRADICTION": 0, "ENTAILMENT": 2}, 2),
        ({"entailment": 0, "not_entailment": 1}, 0),
        ({"not_entailment": 0, "entailment": 1}, 1),
        ({"entailed": 1, "x": 0}, 1),
        ({"LABEL_0": 0, "LABEL_1": 1}, None),
        ({"not_entailment": 0}, None),
    ],
)
def test_entailment_is_found_by_name(labels, index):
    if index is None:
        with pytest.raises(InputError, match="m is no NLI model: its labels are " + ", ".join(labels)):
            entailment_label("m", labels)
    else:
        assert entailment_label("m", labels) == index


def test_the_judge_is_what_plain_transformers_computes(chat):
    judge = Judge(chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    model = AutoModelForCausalLM.from_pretrained(chat).eval()
    yes, no = (
        sorted({tokenizer(word, add_special_tokens=False).input_ids[0] for word in words})
        for words in (("yes", "Yes"), ("no", "No"))
    )
    expected = []
    for request, answer in zip(REQUESTS, ANSWERS, strict=True):
        text = PROMPT.format(request=request, answer=answer, question=QUESTION)
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            logprobs = model(**inputs).logits[0, -1].log_softmax(-1)
        expected.append(logprobs[yes].exp().sum().log() - logprobs[no].exp().sum().log())
    expected = torch.stack(expected)
    assert torch.allclose(judge.margins(REQUESTS, ANSWERS, QUESTION), expected, atol=1e-4)
    count = judge.count(REQUESTS, ANSWERS, QUESTION)
    assert count == int((expected > 0).sum())
    assert 0 < count < len(ANSWERS)


def test_yes_and_no_share_no_token():
    tokenizer = tiny_tokenizer()
    yes, no = yes_and_no("m", tokenizer)
    assert {tokenizer.decode([token]) for token in yes} == {"y", "Y"}
    assert {tokenizer.decode([token]) for token in no} == {"n", "N"}

    class Blind:
        def encode(self, text, add_special_tokens):
            return [7]

    with pytest.raises(InputError, match="The tokenizer of m cannot tell yes from no"):
        yes_and_no("m", Blind())


def ask(behaviour="over-refusal", **scoring):
    run = EngineSettings.model_validate({"model": "demo", "behaviour": behaviour, "scoring": scoring})
    events = []
    before, after = ANSWERS, ["short"] * len(ANSWERS)
    return second_opinions(run, load_behaviour(run), REQUESTS, before, after, events.append), events


def test_each_opinion_is_its_own_count(nli, chat):
    opinions, events = ask(neural_detection_model=nli, judge=chat)
    behaviour = load_behaviour(EngineSettings(model="demo"))
    assert not events
    neural, judged = opinions
    assert neural.name == f"zero-shot NLI {nli}" and judged.name == f"judge {chat}"
    assert (neural.about, judged.about) == (behaviour.hypothesis, behaviour.question)
    model, judge = Entailment(nli), Judge(chat)
    assert neural.before == model.count(ANSWERS, behaviour.hypothesis)
    assert neural.after == model.count(["short"] * len(ANSWERS), behaviour.hypothesis)
    assert judged.before == judge.count(REQUESTS, ANSWERS, behaviour.question)
    assert judged.after == judge.count(REQUESTS, ["short"] * len(ANSWERS), behaviour.question)
    assert {opinion.prompts for opinion in opinions} == {len(ANSWERS)}


def test_none_is_asked_for_by_default():
    assert ask() == ([], [])


def test_what_cannot_be_had_is_an_event_and_the_other_opinion_stands(nli, chat, tmp_path):
    opinions, events = ask(neural_detection_model=chat, judge=chat)
    assert [opinion.name for opinion in opinions] == [f"judge {chat}"]
    assert "is no NLI model" in events[0].reason
    opinions, events = ask(neural_detection_model=nli, judge=str(tmp_path / "nothing"))
    assert [opinion.name for opinion in opinions] == [f"zero-shot NLI {nli}"]
    assert isinstance(events[0], Fallback) and "nothing" in events[0].method
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": "x"}))
    opinions, events = ask(neural_detection_model=str(broken))
    assert opinions == [] and len(events) == 1 and events[0].reason


def test_a_behaviour_that_states_nothing_is_asked_nothing(nli, tmp_path):
    text = """
name = "mine"
about = "x"
less = "y"
[bad]
train = "demo::kind=ordinary"
search = "demo::kind=ordinary"
held_out = "demo::kind=ordinary"
[good]
train = "demo::kind=ordinary"
search = "demo::kind=ordinary"
held_out = "demo::kind=ordinary"
"""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    opinions, events = ask(behaviour=str(path), neural_detection_model=nli)
    assert opinions == []
    assert events[0].reason == "the behaviour mine states no hypothesis"
