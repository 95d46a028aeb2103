"""Data sets by hub id, through the unmodified libraries against a hub on loopback: right rows, few bytes, clear errors."""

import json
import os
import subprocess
import sys

import pytest

from tests.engine.data.hub import ROWS, WORKER, Hub, row

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.close()


# `datasets` reads lines in pieces of 10 MB behind buffers of 5 MB, once for the columns and once for the rows; parquet
# in buffers of 5 MB, for its footer and for its row groups.
@pytest.mark.parametrize(
    ("name", "most"), [("owner/lines::config=en,", 32), ("owner/packed::", 21), ("owner/columns::", 17)]
)
def test_streaming_gives_exactly_the_rows_and_fetches_only_what_the_readers_buffer(hub, name, most):
    answer = hub.ask(f"{name}split=train[500:700],stream=true")
    assert answer["prompts"] == [row(number) for number in range(500, 700)]
    assert 0 < hub.bytes_of_data() < most * MEGABYTE
    assert sum(map(len, hub.repositories[name.split("::", maxsplit=1)[0]].values())) > 40 * MEGABYTE
    assert {path.rpartition("-")[2][0] for path in hub.served if "train-" in path} == {"0"}, "the second shard was read"


def test_streaming_goes_on_into_the_next_shard(hub):
    middle = ROWS // 2
    answer = hub.ask(f"owner/columns::split=train[{middle - 2}:{middle + 3}],stream=true")
    assert answer["prompts"] == [row(number) for number in range(middle - 2, middle + 3)]
    counted = hub.ask(f"owner/columns::offset={middle - 2},rows=5,stream=true")
    assert counted["prompts"] == answer["prompts"]


def test_without_streaming_a_slice_is_the_same_rows(hub):
    assert hub.ask("owner/lines::config=en,split=test[20:30]")["prompts"] == [f"test {n}" for n in range(20, 30)]
    assert hub.ask("owner/lines::config=fr")["prompts"] == ["un", "deux"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("source", "words", "known_by_a_check"),
    [
        ("owner/gated", "owner/gated is gated and this account has no access to it. Accept its conditions", True),
        ("owner/gated::split=train[:3],stream=true", "owner/gated is gated", True),
        ("owner/none", "There is no data set owner/none on the hub, or it is private", True),
        ("owner/none::split=train[:3],stream=true", "There is no data set owner/none on the hub", True),
        ("owner/script", "script", True),
        ("owner/lines::config=xx", "config", True),
        ("owner/lines", "onfig", True),
        ("owner/lines::config=en,split=nosplit", "nosplit", False),
        ("owner/lines::config=en,split=test[20:40]", "has 30 rows where rows 20 to 40 were asked for", False),
        ("owner/lines::config=en,split=test[20:40],stream=true", "has 30 rows where rows 20 to 40", False),
        ("owner/lines::config=en,split=test[:3],column=nothing", "no column nothing; its columns are id, text", False),
    ],
)
def test_what_is_wrong_is_one_line_with_the_name(hub, source, words, known_by_a_check, check):
    answer = hub.ask(source, check=check)
    if check and not known_by_a_check:
        assert answer["prompts"] is None
    else:
        assert words in answer["error"]
        assert source.split("::")[0] in answer["error"]
        assert len(answer["error"].splitlines()) == 1
    if check:
        assert hub.bytes_of_data() == 0


@pytest.mark.parametrize("check", [True, False])
def test_what_is_far_too_large_is_streamed_or_refused(hub, check):
    hub.claimed["owner/columns"] = 100 * 10**9
    try:
        refused = hub.ask("owner/columns::split=train[:3]", check=check)
        assert "owner/columns holds 300 GB" in refused["error"]
        assert "stream=true" in refused["error"]
        assert hub.bytes_of_data() == 0
        assert "error" not in hub.ask("owner/columns::split=train[:3],stream=true", check=check)
    finally:
        hub.claimed.clear()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "owner/name is not on this machine and the hub cannot be reached"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "owner/name is not on this machine and the hub cannot be reached"),
    ],
)
def test_a_check_without_a_network_says_so_and_imports_nothing_heavy(tmp_path, environment, words):
    asked = json.dumps({"source": "owner/name", "check": True}) + "\n"
    asked += json.dumps({"source": "demo::kind=ordinary", "check": True}) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert words in first["error"]
    assert second == {"prompts": None, "heavy": []}
