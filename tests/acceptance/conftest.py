"""The product from outside: its own processes, its own state folder, a real sandbox, the real engine on the demo model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest

from bruno.sandbox import SandboxControl, SandboxInfo, ensure_running

ROOT = Path(__file__).parents[2]

SHORT_SEARCH = {
    # A search short enough for every CI run. It travels to the instance as any setting does; nothing in the code knows of it.
    "BRUNO_DATA__BAD_COUNT": "48",
    "BRUNO_DATA__GOOD_COUNT": "48",
    "BRUNO_SCORING__BAD_COUNT": "16",
    "BRUNO_SCORING__GOOD_COUNT": "16",
    "BRUNO_SCORING__MAX_NEW_TOKENS": "16",
    "BRUNO_FLEET__POLL_SECONDS": "0.5",
    "BRUNO_SCORING__HELD_OUT": "false",
}


@dataclass
class Bruno:
    """bruno as its user starts it, with a state folder of its own."""

    home: Path
    extra: dict[str, str]

    @property
    def environ(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BRUNO_", "VAST_", "ANTHROPIC_", "HF_"))
        }
        own = {
            "BRUNO_HOME": str(self.home),
            "HOME": str(self.home / "user"),
            "XDG_CONFIG_HOME": str(self.home / "user" / ".config"),
            "TERM": "xterm-256color",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
            "LINES": "40",
        }
        return {**kept, **own, **self.extra}

    def run(
        self, *arguments: str, timeout: float = 120, code: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Start it, wait for it. `code` None accepts any exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "bruno", *arguments],
            env=self.environ, cwd=self.home, text=True, capture_output=True, timeout=timeout, check=False,
            input=stdin if stdin is not None else "",
        )  # fmt: skip
        assert code is None or done.returncode == code, (
            f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def json(self, *arguments: str, timeout: float = 60, code: int | None = 0) -> list[dict[str, Any]]:
        """The JSON lines of a command."""
        done = self.run(*arguments, "--json", timeout=timeout, code=code)
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    def terminal(self, *arguments: str, timeout: float = 60) -> pexpect.spawn:
        """Start it in a pseudo-terminal."""
        argv = ["-m", "bruno", *arguments]
        return pexpect.spawn(
            sys.executable,
            argv,
            env=self.environ,
            cwd=str(self.home),
            timeout=timeout,
            encoding="utf-8",
            dimensions=(40, 120),
        )

    def sandbox(self) -> SandboxInfo:
        return ensure_running(self.home)

    def control(self) -> SandboxControl:
        info = self.sandbox()
        return SandboxControl(info.url, info.admin_token)

    def instances(self) -> dict[int, dict[str, Any]]:
        """Every instance of the account, as the sandbox itself sees it."""
        return {each["id"]: each for each in self.control().overview()["instances"]}


@pytest.fixture
def bruno(tmp_path: Path) -> Iterator[Bruno]:
    """On a computer where nothing was done before."""
    home = tmp_path / "home"
    (home / "user").mkdir(parents=True)
    product = Bruno(home, dict(SHORT_SEARCH))
    yield product
    product.run("sandbox", "stop", "--stop-instances", code=None)


@pytest.fixture
def bruno_with_demo(bruno: Bruno, built_demo: tuple[Path, list[str]]) -> Bruno:
    """With instances whose image brings the demo model."""
    state = bruno.home / "sandbox"
    state.mkdir(mode=0o700)
    shutil.copytree(built_demo[0], state / "image" / ".local/share/bruno/cache/demo", copy_function=os.link)
    return bruno
