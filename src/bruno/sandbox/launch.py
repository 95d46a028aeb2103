"""The sandbox as a process of its own: found if it runs, started detached if it does not, ended on request.

Three files beside the state make that safe when two consoles start at once: `start.lock` (one starts, the other waits),
`serve.lock` (held by the serving process all its life, so one folder is never served twice) and `server.json` (how to
reach it; mode 0600, written in one step, removed at the end). Light: neither aiohttp nor asyncssh is imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
from pydantic import ValidationError

from bruno import __version__
from bruno.errors import BrunoError, InputError, Unreachable
from bruno.sandbox.control import SandboxControl
from bruno.sandbox.info import SandboxInfo

IDLE_MINUTES = 20.0
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_LOG_BYTES = 1_000_000
_LEAST_FREE = 100_000
_INHERITED = {
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_RUNTIME_DIR",
}


class SandboxFailed(BrunoError):
    """The sandbox process did not come up, or did not end."""


def state_of(home: Path) -> Path:
    """The sandbox's state folder below bruno's home folder, absolute."""
    return Path(os.path.realpath(home)) / "sandbox"


def running(home: Path) -> SandboxInfo | None:
    """The sandbox of this home folder if it runs and answers, else None. Starts nothing."""
    path = state_of(home) / "server.json"
    try:
        info = SandboxInfo.model_validate_json(path.read_text(encoding="utf-8"))
        health = SandboxControl(info.url, info.admin_token, timeout=10.0).health()
    except (FileNotFoundError, ValidationError, Unreachable, InputError):
        return None
    same = health.get("pid") == info.pid and health.get("state") == str(info.state)
    return info if same else None


def ensure_running(home: Path, *, idle_minutes: float = IDLE_MINUTES) -> SandboxInfo:
    """Find the sandbox of this home folder, or start it as a detached process.

    Safe when several consoles call it at once: one starts it, all get the same. A sandbox of another bruno version is
    ended and started anew; its instances and their processes go on.

    Args:
        home: bruno's home folder (`BRUNO_HOME` or the user's data folder). The state goes to `<home>/sandbox`.
        idle_minutes: a started sandbox ends by itself after so long without a request or a running instance.

    Raises:
        InputError: the `sandbox` extra is not installed, or the folder cannot be used.
        SandboxFailed: it does not come up; the end of its log is in the message.
    """
    for package in ("asyncssh", "aiohttp"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"The sandbox needs {package}", fix="Install it: pip install 'bruno[sandbox]'")
    folder = state_of(home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = (folder / "start.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The sandbox cannot use {folder}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        info = running(home)
        if info is not None and info.version != __version__:
            _end(info, stop_instances=False)
            info = None
        return info or _start(folder, idle_minutes)


def _start(folder: Path, idle_minutes: float) -> SandboxInfo:
    """Start a sandbox process and wait until it serves. The caller holds `start.lock`."""
    log_path = folder / "sandbox.log"
    if log_path.exists() and log_path.stat().st_size > _LOG_BYTES:
        log_path.replace(folder / "sandbox.log.1")
    ready, told = os.pipe()
    command = [sys.executable, "-P", "-m", "bruno.sandbox", "--state", str(folder), "--idle-minutes", str(idle_minutes)]
    environment = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith("LC_")}
    with log_path.open("ab") as log:
        try:
            child = subprocess.Popen(
                [*command, "--ready-fd", str(told)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
                start_new_session=True,
                pass_fds=(told,),
            )
        finally:
            os.close(told)
    with os.fdopen(ready, "rb") as pipe:
        readable, _, _ = select.select([pipe], [], [], _START_SECONDS)
        if readable and pipe.read(1):
            return SandboxInfo.model_validate_json((folder / "server.json").read_text(encoding="utf-8"))
    child.kill()
    child.wait()
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        raise SandboxFailed(f"The sandbox did not start: the disk of {folder} is full", fix="Free some disk space")
    tail = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise SandboxFailed(
        f"The sandbox did not start: {tail[0] if tail else 'it said nothing'}", fix=f"Its log is {log_path}"
    )


def stop(home: Path, *, stop_instances: bool = False) -> dict[str, Any] | None:
    """End the sandbox of this home folder.

    Args:
        home: bruno's home folder.
        stop_instances: end every process on its instances too; else they go on, and the next sandbox finds them.

    Returns:
        What was there (`SandboxControl.overview`), or None if no sandbox was running.

    Raises:
        SandboxFailed: it was asked to end and is still there.
    """
    info = running(home)
    return None if info is None else _end(info, stop_instances=stop_instances)


def _end(info: SandboxInfo, *, stop_instances: bool) -> dict[str, Any]:
    try:
        process = psutil.Process(info.pid)
    except psutil.NoSuchProcess:
        return {}
    overview = SandboxControl(info.url, info.admin_token).shutdown(stop_instances=stop_instances)
    deadline = time.monotonic() + _STOP_SECONDS
    while not _ended(process):
        if time.monotonic() > deadline:
            raise SandboxFailed(f"Sandbox process {info.pid} was asked to end and is still there")
        time.sleep(0.05)
    return overview


def _ended(process: psutil.Process) -> bool:
    """Gone, or a zombie: a console that started it and still runs has not reaped it, and it holds nothing any more."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def serving(folder: Path, *, patience: float = 5.0) -> Iterator[IO[str]]:
    """Hold the right to serve a state folder. Raises `InputError` if another process keeps it for `patience` seconds."""
    with (folder / "serve.lock").open("a", encoding="utf-8") as lock:
        deadline = time.monotonic() + patience  # one that is just ending may still hold it
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(f"Another sandbox serves {folder} already") from None
                time.sleep(0.1)
        yield lock
