"""The processes of an instance: how one is started, how all of them are found and ended. Touches processes only.

A process belongs to an instance if its environment carries the instance's marker, or if one of its ancestors' does. The
marker is inherited through fork, exec, setsid and a lost SSH connection, and it outlives the sandbox, so a restarted
sandbox knows its processes again.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from pathlib import Path

import psutil

from bruno.sandbox.folder import MARKER, InstanceFolder

_PAUSE = 0.005  # seconds for the kernel to take the killed ones away
_ROUNDS = 200  # a process that forks faster than this many sweeps of the process table is not stopped by killing


def find(folder: InstanceFolder) -> list[psutil.Process]:
    """All live processes of an instance, zombies not among them. Never this process or one it descends from."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid in spared or process.environ().get(MARKER) != folder.marker:
                continue
            found[process.pid] = process
            found.update((child.pid, child) for child in process.children(recursive=True) if child.pid not in spared)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended meanwhile, a zombie, or another user's: none of ours
    return [p for p in found.values() if _alive(p)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(folder: InstanceFolder) -> int:
    """End every process of an instance at once, as the end of a container does. Returns how many there were.

    Raises:
        RuntimeError: some are still there after many rounds (they fork faster, or hang in the kernel).
    """
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        processes = find(folder)
        if not processes:
            return len(killed)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            killed.add(process.pid)
        time.sleep(_PAUSE)  # not psutil.wait_procs: it would reap the sandbox's own children and lose their status
    raise RuntimeError(f"processes of instance {folder.id} cannot be killed: {[p.pid for p in find(folder)]}")


def kill_largest(folder: InstanceFolder) -> None:
    """What the kernel does when memory runs out: the process with the most of it is killed, and `dmesg` has the line.

    Raises:
        ValueError: nothing runs on the instance.
    """
    sizes: list[tuple[int, int, psutil.Process, str]] = []
    for process in find(folder):
        try:
            memory = process.memory_info()
            sizes.append((memory.rss, memory.vms, process, process.name()))
        except psutil.NoSuchProcess:
            continue
    if not sizes:
        raise ValueError(f"nothing runs on instance {folder.id}")
    resident, virtual, victim, name = max(sizes, key=lambda size: size[0])
    line = (
        f"[{time.monotonic():12.6f}] Out of memory: Killed process {victim.pid} ({name}) total-vm:{virtual // 1024}kB, "
        f"anon-rss:{resident // 1024}kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:0kB oom_score_adj:0\n"
    )
    victim.kill()
    with folder.kernel_log.open("a", encoding="utf-8") as log:
        log.write(line)


def limit_file_size(folder: InstanceFolder, limit: int | None) -> None:
    """Set how large a file the instance's running processes may write, in bytes; None for no limit.

    The nearest thing to a full disk that needs no privileges: a write beyond it fails with EFBIG ("File too large"),
    not ENOSPC, and it counts per file.
    """
    wanted = resource.RLIM_INFINITY if limit is None else limit
    for process in find(folder):
        try:
            _, hard = process.rlimit(resource.RLIMIT_FSIZE)
            process.rlimit(resource.RLIMIT_FSIZE, (wanted, hard))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def start(
    folder: InstanceFolder,
    argv: list[str],
    *,
    streams: tuple[int, int, int],
    environment: dict[str, str],
    terminal: bool = False,
    file_size_limit: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process on an instance, in a session of its own, in the home folder.

    Args:
        folder: the instance.
        argv: what to run.
        streams: file descriptors for its standard input, output and error. They stay open here.
        environment: its whole environment, see `InstanceFolder.environment`.
        terminal: its streams are a terminal, which becomes the session's controlling one (so closing it hangs up).
        file_size_limit: bytes, see `limit_file_size`.

    Raises:
        OSError: it cannot be started; the home folder may be gone.
    """
    if file_size_limit is not None:  # XFSZ ignored: the write fails instead of the process dying
        kib = file_size_limit // 1024
        argv = ["/bin/bash", "-c", f'trap "" XFSZ; ulimit -S -f {kib}; exec "$@"', "sandbox", *argv]
    if terminal:  # setsid(1) execs in place: it makes the session and takes its standard input as the terminal
        argv = ["setsid", "--ctty", *argv]
    stdin, stdout, stderr = streams
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=folder.home,
        env=environment,
        start_new_session=not terminal,
        restore_signals=True,
    )


def start_onstart(folder: InstanceFolder, extra_env: dict[str, str]) -> None:
    """Run `~/onstart.sh` as a container start does, detached; its output goes to the container's log."""
    with folder.container_log.open("ab") as log, Path(os.devnull).open("rb") as null:
        process = start(
            folder,
            ["/bin/bash", str(folder.home / "onstart.sh")],
            streams=(null.fileno(), log.fileno(), log.fileno()),
            environment=folder.environment(
                VAST_CONTAINERLABEL=f"C.{folder.id}", CONTAINER_ID=str(folder.id), **extra_env
            ),
        )
    threading.Thread(target=process.wait, daemon=True, name=f"reap-{process.pid}").start()
