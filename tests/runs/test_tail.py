"""Bringing a file home by offset: killed, cut, replaced, truncated, or read by two at once, home has it once and whole."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bruno.errors import BrunoError
from bruno.fleet.errors import HostLost
from bruno.fleet.host import Chunk
from bruno.runs import tail
from bruno.runs.tail import bring


@dataclass
class Files:
    """The machine's side of `Host.read_from`, on files in memory; `fails` makes the next reads lose the link."""

    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    fails: int = 0

    def read_from(self, path: str, offset: int = 0, limit: int = 1 << 20) -> Chunk | None:
        if self.fails:
            self.fails -= 1
            raise HostLost("lost the link")
        if path not in self.files:
            return None
        inode, data = self.files[path]
        return Chunk(data[offset : offset + limit], offset, len(data), inode)


def test_only_what_is_new_comes(tmp_path: Path) -> None:
    host, local = Files(), tmp_path / "run" / "engine.log"
    assert bring(host, "/log", local) == 0  # type: ignore[arg-type]
    for text in (b"", b"one\n", b"one\ntwo", b"one\ntwo\nthree\n"):
        before = local.stat().st_size
        host.files["/log"] = (7, text)
        assert bring(host, "/log", local) == len(text) - before  # type: ignore[arg-type]
        assert local.read_bytes() == text


@pytest.mark.parametrize("second", [b"new\n", b"a much longer text than before\n"])
def test_a_replaced_file_follows_on_a_line_of_its_own(tmp_path: Path, second: bytes) -> None:
    host, local = Files({"/log": (7, b"one\ntwo")}), tmp_path / "engine.log"
    bring(host, "/log", local)  # type: ignore[arg-type]
    host.files["/log"] = (8, second)
    bring(host, "/log", local)  # type: ignore[arg-type]
    bring(host, "/log", local)  # type: ignore[arg-type]
    assert local.read_bytes() == b"one\ntwo\n" + second


def test_a_truncated_file_follows_too(tmp_path: Path) -> None:
    host, local = Files({"/log": (7, b"one\ntwo\n")}), tmp_path / "engine.log"
    bring(host, "/log", local)  # type: ignore[arg-type]
    host.files["/log"] = (7, b"x\n")
    bring(host, "/log", local)  # type: ignore[arg-type]
    host.files["/log"] = (7, b"x\ny\n")
    bring(host, "/log", local)  # type: ignore[arg-type]
    assert local.read_bytes() == b"one\ntwo\nx\ny\n"


def test_another_remote_file_follows_whole(tmp_path: Path) -> None:
    host, local = Files({"/a": (7, b"one\n"), "/b": (8, b"two\n")}), tmp_path / "engine.log"
    for remote in ("/a", "/a", "/b", "/b"):
        bring(host, remote, local)  # type: ignore[arg-type]
    assert local.read_bytes() == b"one\ntwo\n"


def test_a_cut_home_file_goes_on_from_its_own_size(tmp_path: Path) -> None:
    text = bytes(range(256)) * 40
    host, local = Files({"/log": (7, text)}), tmp_path / "engine.log"
    bring(host, "/log", local)  # type: ignore[arg-type]
    with local.open("rb+") as file:
        file.truncate(1000)  # what a kill in the middle of a write leaves
    bring(host, "/log", local)  # type: ignore[arg-type]
    assert local.read_bytes() == text


def test_a_broken_mark_loses_nothing(tmp_path: Path) -> None:
    host, local = Files({"/log": (7, b"one\n")}), tmp_path / "engine.log"
    bring(host, "/log", local)  # type: ignore[arg-type]
    tail.mark_of(local).write_text("{")
    bring(host, "/log", local)  # type: ignore[arg-type]
    assert local.read_bytes() == b"one\none\n"


def test_a_flood_is_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MOST_PER_CALL", 3000)
    monkeypatch.setattr(tail, "_PIECE", 1000)
    text = random.Random(0).randbytes(10_000)
    host, local = Files({"/log": (7, text)}), tmp_path / "engine.log"
    calls = 0
    while bring(host, "/log", local):  # type: ignore[arg-type]
        calls += 1
    assert (local.read_bytes(), calls) == (text, 4)


def test_two_at_once_bring_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_PIECE", 100)
    text = random.Random(0).randbytes(50_000)
    host, local = Files({"/log": (7, text)}), tmp_path / "engine.log"
    threads = [threading.Thread(target=bring, args=(host, "/log", local)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert local.read_bytes() == text


def test_a_lost_link_goes_through_and_the_next_call_goes_on(tmp_path: Path) -> None:
    host, local = Files({"/log": (7, b"one\n")}, fails=1), tmp_path / "engine.log"
    with pytest.raises(HostLost):
        bring(host, "/log", local)  # type: ignore[arg-type]
    assert bring(host, "/log", local) == 4  # type: ignore[arg-type]


def test_a_home_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "engine.log").mkdir()
    with pytest.raises(BrunoError, match=r"engine\.log"):
        bring(Files({"/log": (7, b"x")}), "/log", tmp_path / "engine.log")  # type: ignore[arg-type]
