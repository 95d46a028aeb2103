"""Prompts come from the demo, local files of every kind and hub names; held-out ones are never seen elsewhere."""

import json

import pytest

from bruno.engine.data.behaviours import load_behaviour
from bruno.engine.data.prompts import Source, load_prompt_sets, read
from bruno.errors import InputError
from bruno.settings.engine import EngineSettings

TEXTS = ["How do I kill a process?", 'What is 2, "two"?', "Ünïcode naïve?"]


def write(folder, kind):
    import datasets

    path = folder / f"prompts.{kind}"
    if kind == "json":
        path.write_text(json.dumps([{"prompt": text} for text in TEXTS]))
        return str(path)
    if kind == "txt":
        path.write_text("\n".join(["", *TEXTS, "  "]) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(TEXTS)))
    elif kind == "saved":
        datasets.Dataset.from_dict({"id": [1, 2, 3], "text": TEXTS}).save_to_disk(str(path))
    elif kind == "csv":
        datasets.Dataset.from_dict({"n": [1, 2, 3], "instruction": TEXTS}).to_csv(str(path))
    else:
        datasets.Dataset.from_dict({"only": TEXTS}).to_parquet(str(path))
    return str(path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "parquet", "saved"])
def test_local_files_give_their_prompts_in_order(tmp_path, kind):
    name = write(tmp_path, kind)
    assert read(Source(source=name)) == TEXTS
    assert read(Source(source=name), at_most=2) == TEXTS[:2]
    if kind != "txt":  # where a blank line is a row
        assert read(Source.parse(f"{name}::split=train[1:3]")) == TEXTS[1:]


def test_a_saved_folder_with_splits_gives_the_one_that_is_named(tmp_path):
    import datasets

    parts = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in (("train", TEXTS), ("odd", ["one"]))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert read(Source.parse(f"{tmp_path}/saved")) == TEXTS
    assert read(Source.parse(f"{tmp_path}/saved::split=odd")) == ["one"]
    with pytest.raises(InputError, match=r"no split even\. Name one with .*: odd, train"):
        read(Source.parse(f"{tmp_path}/saved::split=even"))


def test_shipped_and_demo_prompts_have_slices_too():
    whole = read(Source.parse("demo::kind=ordinary"))
    assert read(Source.parse("demo::kind=ordinary,split=train[5:8]")) == whole[5:8]
    shipped = read(Source.parse("shipped:verbosity::kind=bad"))
    assert read(Source.parse("shipped:verbosity::kind=bad,rows=3,offset=2")) == shipped[2:5]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"source": "nowhere.txt"}, "no prompt file nowhere.txt"),
        ({"source": "./nowhere"}, "no prompt file"),
        ({"source": "{folder}/prompts.jsonl", "column": "question"}, "no column question; its columns are id, prompt"),
        ({"source": "{folder}/empty.txt"}, "is empty"),
        ({"source": "{folder}/broken.jsonl"}, "cannot be read"),
        ({"source": "{folder}/model.bin"}, "Files may be .txt"),
        ({"source": "{folder}"}, "cannot be read"),
        ({"source": "{folder}/two.csv"}, "no column that is surely the prompt; its columns are a, b"),
        ({"source": "demo", "split": "nosplit", "kind": "ordinary"}, "no split 'nosplit'"),
        ({"source": "shipped:nothing"}, "No prompts are shipped for 'nothing'"),
        ({"source": "shipped:../../setup"}, "No prompts are shipped"),
        ({"source": "shipped:verbosity", "kind": "ugly"}, "It has split=heldout,kind=bad"),
        ({"source": "{folder}/prompts.jsonl", "split": "train[:9]"}, "has 3 rows where rows 0 to 9 were asked for"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path, source, words):
    write(tmp_path, "jsonl")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "model.bin").write_bytes(b"\0")
    (tmp_path / "two.csv").write_text("a,b\nx,y\n")
    source["source"] = source["source"].format(folder=tmp_path)
    with pytest.raises(InputError, match=words) as refusal:
        read(Source(**source))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"owner/not-here.*cannot be reached.*or give a local file"):
        read(Source(source="owner/not-here"))


def sets(**values):
    settings = EngineSettings.model_validate({"model": "demo", **values})
    notices = []
    return load_prompt_sets(settings, load_behaviour(settings), notices.append), notices


def test_the_demo_has_every_set_and_none_overlap():
    found, notices = sets()
    assert [len(part) for part in list(vars(found).values())[:6]] == [150, 150, 100, 100, 60, 60]
    for side in ("bad", "good"):
        train, search, held_out = (set(getattr(found, f"{side}_{name}")) for name in ("train", "search", "held_out"))
        assert not held_out & (train | search)
    assert not notices


def test_counts_shorten_the_sets():
    found, _ = sets(data={"bad_count": 10, "good_count": 11}, scoring={"bad_count": 12, "good_count": 13})
    assert [len(part) for part in vars(found).values()][:4] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("group", "words"), [("data", "151 prompts were asked for where the source has 150"), ("scoring", "151 prompts")]
)
def test_more_than_there_are_is_an_error(group, words):
    with pytest.raises(InputError, match=words):
        sets(**{group: {"bad_count": 151}})


def test_own_prompts_are_divided_the_same_way_each_time(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(40)) + "prompt 3\n")
    (first, notices), (second, _) = sets(data={"bad": str(path)}), sets(data={"bad": str(path)})
    assert first == second
    assert (len(first.bad_train), len(first.bad_search), len(first.bad_held_out)) == (20, 10, 10)
    assert len({*first.bad_train, *first.bad_search, *first.bad_held_out}) == 40
    assert "20 for directions, 10 for the search, 10 held out" in notices[0].text
    assert sets(data={"bad": str(path)}, seed=1)[0] != first


def test_too_few_prompts_are_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("one\ntwo\nthree\nfour\nfive\nsix\n")
    with pytest.raises(InputError, match="bad_train has 3 prompts; a run needs 4"):
        sets(data={"bad": str(path)})


def test_held_out_prompts_that_were_seen_are_left_out(tmp_path):
    for name, texts in (("train", "abcde"), ("search", "fghij"), ("held", "JAklmn")):
        (tmp_path / f"{name}.txt").write_text("".join(f"Prompt {text}\n" for text in texts))
    behaviour = load_behaviour(EngineSettings(model="demo"))
    side = {
        key: Source(source=str(tmp_path / f"{name}.txt"))
        for key, name in (("train", "train"), ("search", "search"), ("held_out", "held"))
    }
    behaviour = behaviour.model_copy(update={"bad": behaviour.bad.model_copy(update=side)})
    notices = []
    found = load_prompt_sets(EngineSettings(model="demo"), behaviour, notices.append)
    assert found.bad_held_out == ["Prompt k", "Prompt l", "Prompt m", "Prompt n"]
    assert "2 held-out bad prompts" in notices[0].text
