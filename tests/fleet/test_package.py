"""The `vastai` package is imported without surprises, and its surroundings are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bruno.errors import InputError
from bruno.fleet.errors import WrongKey
from bruno.fleet.vast import Vast

IN_A_RUNNING_APP = """
import logging, sys
from textual.app import App

class Console(App):
    def on_mount(self):
        self.run_worker(self.load, thread=True)

    def load(self):
        from bruno.fleet.vast import preload
        assert not hasattr(sys.stdout, "encoding")  # what makes a plain `import vastai` fail here
        preload()
        assert all(type(handler) is logging.NullHandler for handler in logging.getLogger("vastai").handlers)
        self.call_from_thread(self.exit, "loaded")

print(Console().run(headless=True))
"""


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_it_can_be_imported_under_a_running_console_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = run(IN_A_RUNNING_APP, tmp_path)
    assert (result.stdout.splitlines()[-1:], result.stderr) == (["loaded"], "")
    assert list(tmp_path.iterdir()) == []  # the package's `cli` part would have made folders


def test_the_room_itself_imports_none_of_its_heavy_libraries(tmp_path: Path) -> None:
    heavy = "vastai requests fabric paramiko invoke cryptography torch textual"
    modules = "vast acts waits keys host_keys host files jobs models errors"
    code = f"""
import sys
for module in '{modules}'.split():
    __import__('bruno.fleet.' + module)
print([name for name in '{heavy}'.split() if name in sys.modules])
"""
    result = run(code, tmp_path)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("key", ["", "  ", "two words", "new\nline", "café"])
def test_what_cannot_be_a_key_is_refused_at_once(key: str) -> None:
    with pytest.raises(WrongKey):
        Vast(key, "http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["", "console.vast.ai", "ftp://x", "https://"])
def test_what_cannot_be_an_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(InputError):
        Vast("key", url)


def test_a_netrc_entry_that_would_replace_the_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine console.vast.ai login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(InputError, match=r"netrc.*console\.vast\.ai"):
        Vast("key", "https://console.vast.ai")
    Vast("key", "https://other.example")


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "internal.example")
    Vast("key", "http://127.0.0.1:1")
    assert os.environ["no_proxy"].split(",") == ["internal.example", "127.0.0.1"]
