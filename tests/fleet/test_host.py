"""Real Fabric against the sandbox's real SSH servers running real bash."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from bruno.errors import BrunoError
from bruno.fleet.errors import (
    Cancelled,
    CommandTimedOut,
    DiskFull,
    HostKeyChanged,
    HostLost,
    HostRefused,
    TransferFailed,
    WrongHost,
)
from bruno.fleet.files import fetch
from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import KeyPair, key_pair
from bruno.fleet.models import Endpoint, Instance
from bruno.fleet.ssh import CUT, OUTPUT_LIMIT
from tests.fleet.conftest import Cloud


@pytest.fixture
def reach(cloud: Cloud, key: KeyPair, pins: HostKeys) -> Callable[..., Host]:
    def reach(instance: Instance, *, patience: float = 0, with_key: KeyPair = key, cancel: Event | None = None) -> Host:
        return connect(
            instance, with_key, pins, patience=patience, clock=cloud.time.clock, sleep=cloud.time.sleep, cancel=cancel
        )

    return reach


def home(cloud: Cloud, instance: Instance) -> Path:
    """The instance's login folder, as it lies on this machine."""
    rows = cloud.control.overview()["instances"]
    return Path(next(row["home"] for row in rows if row["id"] == instance.id))


# Connecting


def test_the_direct_endpoint_comes_first_and_the_first_host_key_is_pinned(
    machine: Instance, pins: HostKeys, reach: Callable[..., Host]
) -> None:
    with reach(machine) as host:
        assert (host.endpoint.kind, host.endpoint.port) == ("direct", machine.ssh_port)
        assert host.identify() == f"C.{machine.id}"
    first = pins.fingerprint(machine.id)
    with reach(replace(machine, direct=None)) as host:
        assert host.endpoint.kind == "proxy"
    assert pins.fingerprint(machine.id) == first


def test_the_proxy_is_tried_when_direct_refuses(machine: Instance, reach: Callable[..., Host]) -> None:
    with reach(replace(machine, direct=Endpoint("direct", "127.0.0.1", 1))) as host:
        assert host.endpoint.kind == "proxy"


def test_a_changed_host_key_names_both_and_nothing_is_sent(
    cloud: Cloud, machine: Instance, pins: HostKeys, reach: Callable[..., Host]
) -> None:
    reach(machine).close()
    pinned = pins.fingerprint(machine.id)
    cloud.control.order("host_key_change", instance=machine.id)
    with pytest.raises(HostKeyChanged) as caught:
        reach(machine, patience=600)
    error = caught.value
    assert error.pinned == pinned
    assert error.shown.startswith("SHA256:")
    assert error.shown != pinned
    assert error.pinned in str(error)
    assert error.shown in str(error)
    assert cloud.time.slept == []  # waiting would not mend it
    assert pins.fingerprint(machine.id) == pinned


def test_another_machine_at_the_address_is_not_pinned(
    cloud: Cloud, machine: Instance, pins: HostKeys, reach: Callable[..., Host]
) -> None:
    stranger = replace(machine, id=machine.id + 1000)
    with pytest.raises(WrongHost, match=f"is not instance {stranger.id}: it says it is 'C.{machine.id}'"):
        reach(stranger, patience=600)
    assert pins.get(stranger.id) is None


def test_a_machine_without_a_label_is_nobodys(
    cloud: Cloud, machine: Instance, pins: HostKeys, reach: Callable[..., Host]
) -> None:
    (home(cloud, machine) / ".vast_containerlabel").unlink()
    with pytest.raises(WrongHost, match="carries no label file"):
        reach(machine)
    assert pins.get(machine.id) is None


@pytest.mark.parametrize("fault", ["accept_then_close", "key_lag", "late_ssh"])
def test_a_young_instance_is_given_time(cloud: Cloud, key: KeyPair, reach: Callable[..., Host], fault: str) -> None:
    if fault == "late_ssh":
        cloud.control.order(fault, value=20)
    if fault == "key_lag":
        cloud.control.order(fault, value=20)
    cloud.vast.once("ssh", "register", lambda sdk: sdk.create_ssh_key(key.public_key))
    created = cloud.vast.once(
        "create",
        "rent",
        lambda sdk: sdk.create_instance(20871102, image="i", disk=20, label="x", ssh=True, direct=True),
    )
    cloud.time.sleep(5)
    instance = cloud.vast.instance(created["new_contract"])
    assert instance is not None
    if fault == "accept_then_close":
        cloud.control.order(fault, times=3, instance=instance.id)
    with pytest.raises(HostRefused):
        reach(instance)
    with reach(instance, patience=120) as host:
        assert host.run(["true"]).ok


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (Endpoint("direct", "127.0.0.1", 1), "refuses the connection"),
        (Endpoint("direct", "no-such-host.invalid", 22), "cannot be found"),
    ],
)
def test_what_each_endpoint_said_is_told(
    cloud: Cloud, machine: Instance, reach: Callable[..., Host], endpoint: Endpoint, said: str
) -> None:
    with pytest.raises(HostRefused, match=said):
        reach(replace(machine, direct=endpoint, proxy=None), patience=6)
    assert cloud.time.slept == [3.0, 3.0]


def test_a_key_the_machine_does_not_know(machine: Instance, tmp_path: Path, reach: Callable[..., Host]) -> None:
    with pytest.raises(HostRefused, match=r"does not accept bruno's SSH key.*Attach the key"):
        reach(machine, with_key=key_pair(tmp_path / "another"))


def test_no_endpoint_and_called_off(machine: Instance, reach: Callable[..., Host]) -> None:
    nowhere = replace(machine, direct=None, proxy=None)
    with pytest.raises(HostRefused, match="shows no SSH address"):
        reach(nowhere)
    cancel = Event()
    cancel.set()
    with pytest.raises(Cancelled):
        reach(replace(machine, direct=Endpoint("direct", "127.0.0.1", 1), proxy=None), patience=60, cancel=cancel)


# Running


WORDS = [
    "plain",
    "two words",
    "$(id)",
    "; id #",
    "'quoted'",
    '"',
    "\\",
    "a\nb",
    "*",
    "~",
    "-n",
    "ü",
    "",
    "\t",
    "`id`",
    "$HOME",
    "<x",
]


def test_every_argument_arrives_unchanged(host: Host) -> None:
    result = host.run(["printf", "%s|", *WORDS])
    assert result.stdout.split("|") == [*WORDS, ""]


def test_the_exit_code_is_the_command_s(host: Host) -> None:
    for code in (0, 1, 2, 77, 126, 127, 137, 255):
        result = host.run(["bash", "-c", f"echo out; echo err >&2; exit {code}"])
        assert (result.exit_code, result.ok, result.stdout, result.stderr) == (code, code == 0, "out\n", "err\n")


def test_variables_reach_the_command_and_nothing_reads_our_keyboard(host: Host) -> None:
    assert (
        host.run(["bash", "-c", 'printf %s "$GREETING"'], env={"GREETING": "hello 'you'; id"}).stdout
        == "hello 'you'; id"
    )
    assert host.run(["cat"]).stdout == ""


def test_bytes_that_are_no_text_do_not_break_the_reading(host: Host) -> None:
    assert "\ufffd" in host.run(["printf", "a\\377b"]).stdout


def test_endless_output_is_cut(host: Host) -> None:
    result = host.run(["bash", "-c", f"head -c {OUTPUT_LIMIT + 100_000} /dev/zero | tr '\\0' x; echo done >&2"])
    assert len(result.stdout) == OUTPUT_LIMIT + len(CUT)
    assert result.stdout.endswith(CUT.decode())
    assert (result.exit_code, result.stderr) == (0, "done\n")


def test_a_command_that_takes_too_long_may_still_run(host: Host, cloud: Cloud, machine: Instance) -> None:
    with pytest.raises(CommandTimedOut, match=r"took longer than 0\.3 s"):
        host.run(["bash", "-c", "echo $$ > pid; exec sleep 60"], timeout=0.3)
    pid = int((home(cloud, machine) / "pid").read_text())
    os.kill(pid, 0)  # it does
    assert host.run(["echo", "still here"]).ok
    host.run(["kill", str(pid)])


def test_no_exit_code_is_a_lost_link_not_a_failed_job(host: Host) -> None:
    with pytest.raises(HostLost, match="may still be running"):
        host.run(["bash", "-c", "kill -9 $PPID"])  # the shell that would have reported it
    assert host.run(["bash", "-c", "kill -9 $$"]).exit_code == 137


def test_a_cut_link_is_lost_and_stays_lost(host: Host, cloud: Cloud, machine: Instance) -> None:
    assert host.run(["true"]).ok
    cloud.control.order("drop_ssh", instance=machine.id)
    for operation in (
        lambda: host.run(["true"]),
        lambda: host.read_from("x"),
        lambda: host.exists("x"),
        lambda: host.run(["true"]),  # Fabric alone would have connected again
    ):
        with pytest.raises(HostLost):
            operation()
    host.close()


def test_a_link_cut_during_a_command(host: Host, cloud: Cloud, machine: Instance) -> None:
    def cut() -> None:
        while not (home(cloud, machine) / "started").exists():
            time.sleep(0.01)
        cloud.control.order("drop_ssh", instance=machine.id)

    cutter = Thread(target=cut)
    cutter.start()
    with pytest.raises(HostLost):
        host.run(["bash", "-c", "touch started; sleep 30"])
    cutter.join()


# Files


def test_a_file_is_followed_by_offset(host: Host, cloud: Cloud, machine: Instance) -> None:
    log = home(cloud, machine) / "log"
    assert host.read_from("log") is None
    log.write_bytes(b"first line\n")
    first = host.read_from("log")
    assert first is not None
    assert (first.data, first.offset, first.size) == (b"first line\n", 0, 11)
    assert first.inode == log.stat().st_ino
    assert (again := host.read_from("log", 11)) is not None
    assert (again.data, again.size, again.inode) == (b"", 11, first.inode)
    with log.open("ab") as file:
        file.write("zweite \u00e4".encode()[:-1])  # cut in the middle of a letter
    more = host.read_from("log", 11)
    assert more is not None
    assert more.data == "zweite \u00e4".encode()[:-1]
    limited = host.read_from("log", 2, 3)
    assert limited is not None
    assert limited.data == b"rst"


def test_a_file_that_was_cut_or_replaced_is_seen(host: Host, cloud: Cloud, machine: Instance) -> None:
    log = home(cloud, machine) / "log"
    log.write_bytes(b"a" * 100)
    first = host.read_from("log")
    log.write_bytes(b"b")  # the same file, cut
    cut = host.read_from("log", 100)
    log.unlink()
    (home(cloud, machine) / "other").write_bytes(b"")  # takes the inode that was freed
    log.write_bytes(b"c" * 500)  # another file, and longer
    replaced = host.read_from("log", 100)
    assert first is not None
    assert cut is not None
    assert replaced is not None
    assert (cut.data, cut.size, cut.inode) == (b"", 1, first.inode)
    assert replaced.inode == log.stat().st_ino
    assert replaced.inode != first.inode


def test_a_large_piece_comes_whole(host: Host, cloud: Cloud, machine: Instance) -> None:
    data = os.urandom(3_000_000)
    (home(cloud, machine) / "big").write_bytes(data)
    chunk = host.read_from("big", 1000, 1 << 20)
    assert chunk is not None
    assert chunk.data == data[1000 : 1000 + (1 << 20)]


def test_small_files_are_written_whole_and_privately(host: Host, cloud: Cloud, machine: Instance) -> None:
    host.make_folder("deep/er")
    host.make_folder("deep/er")
    host.write("deep/er/token", b"secret")
    path = home(cloud, machine) / "deep/er/token"
    assert (path.read_bytes(), oct(path.stat().st_mode)[-3:]) == (b"secret", "600")
    host.write("deep/er/token", b"other", mode=0o644)
    assert (path.read_bytes(), oct(path.stat().st_mode)[-3:]) == (b"other", "644")
    assert host.exists("deep/er/token")
    assert not host.exists("deep/er/nothing")
    assert host.sha256("deep/er/token") == "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa"


@pytest.mark.parametrize(
    "operation",
    [
        lambda host: host.write("no/such/folder/x", b""),
        lambda host: host.sha256("nothing"),
        lambda host: host.make_folder(".vast_containerlabel/x"),
        lambda host: host.read_from("."),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(host: Host, operation: Callable[[Host], object]) -> None:
    with pytest.raises(TransferFailed, match=f"on instance {host.instance_id}: ") as caught:
        operation(host)
    assert "\n" not in str(caught.value)
    assert host.run(["true"]).ok  # the link is as good as before


def test_the_workspace_and_its_room(host: Host, cloud: Cloud, machine: Instance) -> None:
    workspace = host.workspace()
    assert workspace == str(home(cloud, machine) / "workspace")
    room = host.free_disk(workspace)
    assert room is not None
    assert room > 0
    assert host.free_disk("/no/such/place") is None


def test_a_full_disk_is_called_so(host: Host, cloud: Cloud, machine: Instance) -> None:
    cloud.control.order("disk_full", instance=machine.id)
    assert host.free_disk(".") == 0
    with pytest.raises((DiskFull, TransferFailed)):
        host.write("x", b"y" * 1000)
    cloud.control.order("disk_freed", instance=machine.id)
    host.write("x", b"y" * 1000)


def test_threads_share_one_link(host: Host) -> None:
    results: list[str | BrunoError] = []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                results.append(host.run(["echo", str(number)]).stdout)
                host.exists("x")
        except BrunoError as error:
            results.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == sorted(f"{n}\n" for n in range(5) for _ in range(3))


# A link that freezes: packets go nowhere, and nobody says so


class Relay:
    """A TCP relay that can stop passing anything on, as a frozen link does."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.frozen = Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.sockets: list[socket.socket] = [self.server]
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [client, there]
            for source, sink in ((client, there), (there, client)):
                Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.frozen.is_set():
                    return
                sink.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        for each in self.sockets:
            each.close()


@pytest.fixture
def relay(machine: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setattr("bruno.fleet.ssh.CONNECT_SECONDS", 1.0)
    monkeypatch.setattr("bruno.fleet.link.SFTP_SECONDS", 0.3)
    monkeypatch.setattr("bruno.fleet.link.GRACE_SECONDS", 0.2)
    relay = Relay(machine.ssh_port or 0)
    yield relay
    relay.close()


@pytest.mark.parametrize(
    "operation",
    [
        lambda host: host.run(["true"], timeout=0.5),
        lambda host: host.read_from("x"),
        lambda host: host.exists("x"),
        lambda host: host.write("x", b"y" * 1_000_000),
    ],
)
def test_a_frozen_link_is_given_up(
    machine: Instance, relay: Relay, reach: Callable[..., Host], operation: Callable[[Host], object]
) -> None:
    host = reach(replace(machine, direct=Endpoint("direct", "127.0.0.1", relay.port), proxy=None))
    assert host.run(["true"]).ok
    host.exists("x")  # so that the SFTP channel is open too
    relay.frozen.set()
    with pytest.raises(HostLost):
        operation(host)
    with pytest.raises(HostLost):
        host.run(["true"])
    host.close()


def test_a_link_that_freezes_during_a_command(
    machine: Instance, relay: Relay, reach: Callable[..., Host], cloud: Cloud
) -> None:
    host = reach(replace(machine, direct=Endpoint("direct", "127.0.0.1", relay.port), proxy=None))

    def freeze() -> None:
        while not (home(cloud, machine) / "started").exists():
            time.sleep(0.01)
        relay.frozen.set()

    freezer = Thread(target=freeze)
    freezer.start()
    with pytest.raises((CommandTimedOut, HostLost), match="may still be running"):
        host.run(["bash", "-c", "touch started; sleep 30"], timeout=1)
    freezer.join()
    with pytest.raises(HostLost):
        host.run(["true"], timeout=0.5)
    host.close()


def test_a_link_that_freezes_during_a_copy(
    machine: Instance, relay: Relay, reach: Callable[..., Host], cloud: Cloud, tmp_path: Path
) -> None:
    folder = home(cloud, machine) / "m"
    folder.mkdir()
    (folder / "weights").write_bytes(os.urandom(3_000_000))
    through_relay = replace(machine, direct=Endpoint("direct", "127.0.0.1", relay.port), proxy=None)
    with reach(through_relay) as host, pytest.raises(HostLost):
        fetch(host, str(folder), tmp_path / "m", lambda progress: relay.frozen.set() if progress.done else None)
    with reach(machine) as host:
        assert fetch(host, str(folder), tmp_path / "m").resumed > 0
    assert (tmp_path / "m/weights").read_bytes() == (folder / "weights").read_bytes()
