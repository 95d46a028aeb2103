"""bruno's key pair and the pinned host keys, checked against OpenSSH's own formats and paramiko."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import paramiko
import pytest

from bruno.errors import InputError
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import fingerprint, fingerprint_of, key_pair, same_key

# The fingerprint is what `ssh-keygen -lf` of OpenSSH 9.2 prints for this key.
GITHUB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
GITHUB_PRINT = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_a_pair_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    pair = key_pair(tmp_path / "keys")
    assert stat.S_IMODE(pair.private_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(pair.private_path.parent.stat().st_mode) == 0o700
    assert key_pair(tmp_path / "keys") == pair
    assert [path.name for path in pair.private_path.parent.iterdir()] == [pair.private_path.name]
    read = paramiko.Ed25519Key.from_private_key_file(str(pair.private_path))
    assert pair.public_key == f"{read.get_name()} {read.get_base64()} bruno"
    assert pair.fingerprint == fingerprint_of(read.asbytes())


def test_fingerprints_are_openssh_s() -> None:
    assert fingerprint(f"{GITHUB} somebody@somewhere") == GITHUB_PRINT
    assert same_key(GITHUB, f"{GITHUB} a comment\n")
    assert not same_key(GITHUB, GITHUB[:-1] + "m")


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "/home/me/.ssh/id_ed25519.pub", "ssh-ed25519 not*base64"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a public SSH key"):
        fingerprint(text)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = key_pair(tmp_path).private_path
    path.chmod(0o644)
    with pytest.raises(InputError, match=f"chmod 600 {path}"):
        key_pair(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "rubbish", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_a_broken_key_is_refused_and_never_replaced(tmp_path: Path, text: str) -> None:
    path = key_pair(tmp_path).private_path
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        key_pair(tmp_path)
    assert path.read_text() == text


def test_a_pin_is_made_once_and_read_back(tmp_path: Path) -> None:
    pins = HostKeys(tmp_path / "known_hosts")
    first, second = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    assert pins.get(101) is None
    assert pins.fingerprint(101) is None
    pins.pin(101, first)
    assert pins.get(101) == first
    assert pins.fingerprint(101) == fingerprint_of(first.asbytes())
    with pytest.raises(FileExistsError):
        pins.pin(101, second)
    assert pins.get(101) == first
    assert [path.name for path in pins.folder.iterdir()] == ["101"]
    pins.forget(101)
    pins.forget(101)
    assert pins.get(101) is None


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "no-such-type AAAA", "ssh-ed25519 ***"])
def test_a_broken_pin_is_an_error_not_a_first_contact(tmp_path: Path, text: str) -> None:
    pins = HostKeys(tmp_path)
    (tmp_path / "101").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        pins.get(101)
