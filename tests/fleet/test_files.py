"""Copying folders to and from a sandbox instance over real SFTP: resumable, hashed, and never half-done under a final name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from bruno.errors import InputError
from bruno.fleet import files
from bruno.fleet.errors import Cancelled, DiskFull, HostLost, TransferFailed
from bruno.fleet.files import Progress, fetch, send
from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair
from bruno.fleet.models import Instance
from tests.fleet.conftest import Cloud

SIZES = {
    "config.json": 700,
    "model-00001.safetensors": 2_500_001,
    "model-00002.safetensors": 1_300_000,
    "sub/empty": 0,
    "odd name ü'\n$": 40,
}


@pytest.fixture
def remote(host: Host) -> Path:
    """A model on the machine; the sandbox's files lie on this one."""
    folder = Path(host.workspace()) / "models/m"
    for name, size in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home/m"


def digests(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def cancel_at(fraction: float) -> tuple[Event, Any]:
    """A cancellation that the person makes when that much has arrived."""
    event = Event()

    def watch(progress: Progress) -> None:
        if progress.done >= fraction * progress.total:
            event.set()

    return event, watch


def test_a_folder_comes_home_whole(host: Host, remote: Path, home: Path) -> None:
    seen: list[Progress] = []
    report = fetch(host, str(remote), home, seen.append)
    assert report.sha256 == digests(remote) == digests(home)
    assert (report.files, report.bytes, report.resumed) == (len(SIZES), sum(SIZES.values()), 0)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[-1].done, seen[-1].files_done) == (sum(SIZES.values()), len(SIZES))
    assert [path.name for path in home.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.99])
def test_a_copy_goes_on_where_it_stopped(host: Host, remote: Path, home: Path, fraction: float) -> None:
    event, watch = cancel_at(fraction)
    with pytest.raises(Cancelled, match="can be taken up again"):
        fetch(host, str(remote), home, watch, event)
    assert not home.exists()
    arrived = sum(path.stat().st_size for path in home.with_name("m.part").rglob("*") if path.is_file())
    assert arrived >= fraction * sum(SIZES.values()) - 100_000
    report = fetch(host, str(remote), home)
    assert report.resumed == arrived
    assert digests(home) == digests(remote)


def test_a_link_cut_in_the_middle_loses_nothing(
    cloud: Cloud, machine: Instance, key: KeyPair, pins: HostKeys, host: Host, remote: Path, home: Path
) -> None:
    def cut(progress: Progress) -> None:
        if progress.done > 1_000_000:
            cloud.control.order("drop_ssh", instance=machine.id)

    with pytest.raises(HostLost):
        fetch(host, str(remote), home, cut)
    host.close()
    with connect(machine, key, pins, clock=cloud.time.clock, sleep=cloud.time.sleep) as again:
        report = fetch(again, str(remote), home)
    assert report.resumed >= 1_000_000
    assert digests(home) == digests(remote)


def test_a_spoilt_beginning_is_fetched_again(host: Host, remote: Path, home: Path) -> None:
    staging = home.with_name("m.part")
    staging.mkdir(parents=True)
    (staging / "model-00001.safetensors.part").write_bytes(b"x" * 1_000_000)
    (staging / "model-00002.safetensors").write_bytes(b"x" * SIZES["model-00002.safetensors"])
    (staging / "config.json.part").write_bytes(b"x" * 900)  # longer than the file is now
    (staging / "left over from yesterday").write_bytes(b"x")
    fetch(host, str(remote), home)
    assert digests(home) == digests(remote)


def test_a_file_that_will_not_stay_the_same_is_refused(
    host: Host, remote: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "sha256", lambda self, path, timeout=0: "0" * 64)
    with pytest.raises(TransferFailed, match="does not arrive unchanged"):
        fetch(host, str(remote), home)
    assert not home.exists()


def test_what_is_home_already_is_left_alone(host: Host, remote: Path, home: Path) -> None:
    fetch(host, str(remote), home)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    report = fetch(host, str(remote), home)
    assert report.resumed == report.bytes == sum(SIZES.values())
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_another_folder_of_that_name_is_not_overwritten(host: Host, remote: Path, home: Path) -> None:
    fetch(host, str(remote), home)
    (home / "config.json").write_text("mine")
    with pytest.raises(InputError, match="exists and is not what is on the machine"):
        fetch(host, str(remote), home)
    assert (home / "config.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("what", "said"), [("nothing", "could not list"), ("empty", "holds no files"), ("loop", "could not list")]
)
def test_no_folder_no_files(host: Host, home: Path, what: str, said: str) -> None:
    folder = Path(host.workspace()) / what
    if what != "nothing":
        folder.mkdir()
    if what == "loop":
        (folder / "again").symlink_to(folder)
    with pytest.raises(TransferFailed, match=said):
        fetch(host, str(folder), home)
    assert not home.exists()


def test_a_name_that_leads_out_is_refused(host: Host, remote: Path, home: Path) -> None:
    for name in ("../x", "/etc/x", "a/../../x", "a\\b", "x.part"):
        assert not files._stays_inside(name)
    (remote / "evil\\name").write_text("x")
    with pytest.raises(TransferFailed, match="unfit name"):
        fetch(host, str(remote), home)


def test_links_on_the_machine_are_followed_so_that_nothing_is_missing(host: Host, remote: Path, home: Path) -> None:
    (remote / "tokenizer.json").symlink_to("config.json")
    fetch(host, str(remote), home)
    assert (home / "tokenizer.json").read_bytes() == (remote / "config.json").read_bytes()
    assert not (home / "tokenizer.json").is_symlink()


def test_a_disk_too_small_is_told_before_anything_is_copied(
    host: Host, remote: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1_000_000))
    with pytest.raises(DiskFull, match=r"has 0\.00 GB free"):
        fetch(host, str(remote), home)
    monkeypatch.undo()
    assert fetch(host, str(remote), home).files == len(SIZES)


def test_a_disk_that_fills_up_on_the_way_keeps_what_arrived(
    host: Host, remote: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(DiskFull, match=r"the disk of .* is full"):
        fetch(host, str(remote), home)
    monkeypatch.undo()
    report = fetch(host, str(remote), home)
    assert report.resumed > 0
    assert digests(home) == digests(remote)


def test_a_place_that_cannot_be_written(host: Host, remote: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TransferFailed, match="could not write to"):
        fetch(host, str(remote), tmp_path / "file/m")


# Sending


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "engine.whl"
    path.write_bytes(os.urandom(1_000_000))
    return path


def test_a_file_is_sent_whole(host: Host, wheel: Path) -> None:
    target = Path(host.workspace()) / "new/folder/engine.whl"
    report = send(host, wheel, str(target))
    assert target.read_bytes() == wheel.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["engine.whl"]
    assert report.sha256 == {"engine.whl": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    before = target.stat()
    send(host, wheel, str(target))
    assert target.stat().st_ino == before.st_ino


def test_sending_goes_on_where_it_stopped(host: Host, wheel: Path) -> None:
    target = Path(host.workspace()) / "engine.whl"
    event, watch = cancel_at(0.5)
    with pytest.raises(Cancelled):
        send(host, wheel, str(target), watch, event)
    assert not target.exists()
    arrived = target.with_name("engine.whl.part").stat().st_size
    assert arrived > 400_000
    report = send(host, wheel, str(target))
    assert report.resumed == arrived
    assert target.read_bytes() == wheel.read_bytes()


def test_a_spoilt_beginning_is_sent_again(host: Host, wheel: Path) -> None:
    target = Path(host.workspace()) / "engine.whl"
    target.with_name("engine.whl.part").write_bytes(b"x" * 500_000)
    assert send(host, wheel, str(target)).resumed == 0
    assert target.read_bytes() == wheel.read_bytes()


def test_a_full_machine_is_told(cloud: Cloud, host: Host, machine: Instance, wheel: Path) -> None:
    cloud.control.order("disk_full", instance=machine.id)
    target = Path(host.workspace()) / "engine.whl"
    with pytest.raises(DiskFull, match=f"the disk of instance {machine.id} has 0.00 GB free"):
        send(host, wheel, str(target))
    assert not target.exists()
    cloud.control.order("disk_freed", instance=machine.id)
    send(host, wheel, str(target))
    assert target.read_bytes() == wheel.read_bytes()


def test_what_is_not_there_cannot_be_sent(host: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        send(host, tmp_path / "nothing", "x")
