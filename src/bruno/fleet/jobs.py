"""Launching a job that outlives the connection, once, and telling truly whether it runs. Writes only in the job's folder.

In the job's folder lie `log` (its output), and under `lock/` what one launch left: `launched` (when), `wrapper` and `job` (pid
and start time of the two processes), `exit` (the exit code, renamed into place). The lock is a folder because making one is
atomic: of two launches one is refused. Start times (field 22 of /proc/PID/stat) tell a process from a later one with its pid,
and a zombie counts as dead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bruno.errors import InputError
from bruno.fleet.errors import AlreadyLaunched, TransferFailed
from bruno.fleet.host import Completed, Host
from bruno.guard.sanitise import safe_line

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCKED = 75  # EX_TEMPFAIL: our scripts' exit code for "another launch is, or was, here"

# Runs in its own session, so that nothing of the connection can end it. The job is its child: were the wrapper alone killed,
# the engine would go on, and a second one must not be started beside it.
_WRAPPER = r"""
lock=$1/lock; cd -- "$1" || exit 1; shift
ticks() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) && s=${s##*) } && set -- $s && echo "${20}"; }
echo "$$ $(ticks $$)" > "$lock/wrapper"
if [ -e "$lock/env" ]; then set -a; . "$lock/env"; set +a; fi
"$@" &
job=$!
echo "$job $(ticks $job)" > "$lock/job.new" && mv -- "$lock/job.new" "$lock/job"
wait "$job"
echo "$?" > "$lock/exit.new" && mv -- "$lock/exit.new" "$lock/exit"
"""

# Takes the lock, starts the wrapper detached, and waits (there, not from here) until it has written its process down.
_LAUNCH = r"""
folder=$1 wrapper=$2; shift 2
mkdir -p -- "$folder" || exit 1
mkdir -- "$folder/lock" 2>/dev/null || {
  [ -d "$folder/lock" ] && { rm -f -- "$folder/env"; exit 75; }
  mkdir -- "$folder/lock"; exit 1  # says why
}
date -u +%s > "$folder/lock/launched" || exit 1
awk '$1 == "oom_kill" {print $2}' /sys/fs/cgroup/memory.events > "$folder/lock/oom" 2>/dev/null
if [ -e "$folder/env" ]; then mv -- "$folder/env" "$folder/lock/env" || exit 1; fi
setsid -f bash -c "$wrapper" bruno-job "$folder" "$@" >> "$folder/log" 2>&1 < /dev/null || exit 1
for _ in $(seq 100); do [ -e "$folder/lock/job" ] && exit 0; sleep 0.05; done
"""

_STATE = r"""
lock=$1/lock
[ -r /proc/self/stat ] || { echo "proc=none"; exit 0; }
[ -d "$lock" ] || { echo "lock=none"; exit 0; }
echo "lock=held"
alive() {
  [ -r "$lock/$1" ] || { echo "$1=none"; return; }
  local pid start s; read -r pid start < "$lock/$1"
  if s=$(cat "/proc/$pid/stat" 2>/dev/null); then
    s=${s##*) }; set -- "$1" $s
    case $2 in Z|X) ;; *) [ "${21}" = "$start" ] && { echo "$1=alive $pid $start"; return; };; esac
  fi
  echo "$1=dead $pid $start"
}
alive job; alive wrapper
for name in launched exit; do [ -r "$lock/$name" ] && echo "$name=$(cat "$lock/$name")"; done
echo "now=$(date -u +%s)"
if read -r pid _ < "$lock/job" 2>/dev/null; then
  dmesg 2>/dev/null | grep -qE "Killed process $pid\b|oom.*\bpid=$pid\b" && echo "oom=kernel log"
  before=$(cat "$lock/oom" 2>/dev/null)
  after=$(awk '$1 == "oom_kill" {print $2}' /sys/fs/cgroup/memory.events 2>/dev/null)
  [ -n "$before" ] && [ -n "$after" ] && [ "$after" -gt "$before" ] && echo "oom=memory control group"
fi
exit 0
"""

_RETIRE = r"""
cd -- "$1" || exit 1
[ -d lock ] || exit 0
for n in $(seq 1 10000); do [ -e "lock.$n" ] || { mv -T -- lock "lock.$n"; exit; }; done
exit 1
"""


class JobPhase(StrEnum):
    ABSENT = "absent"
    """Never launched here."""
    RUNNING = "running"
    FINISHED = "finished"
    """Ended by itself, or was killed under a wrapper that lived to write the exit code (137 = killed)."""
    LOST = "lost"
    """Was launched, no longer runs, and left no exit code: killed with its wrapper, or the machine went down."""
    UNKNOWN = "unknown"
    """The machine's answer does not tell."""


@dataclass(frozen=True)
class JobState:
    """What is known of a job at one moment."""

    phase: JobPhase
    exit_code: int | None = None
    pid: int | None = None
    started: int | None = None
    """Start time of the process, field 22 of /proc/PID/stat, in clock ticks since the machine's boot."""
    launched_at: datetime | None = None
    """By the machine's clock."""
    out_of_memory: bool = False
    """The kernel killed for want of memory: its log names this process, or the container's count of such kills rose."""
    detail: str = ""


def launch(host: Host, job_folder: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> JobState:
    """Start `argv` detached in `job_folder` (absolute), its output appended to `job_folder/log`, under a lock.

    Args:
        env: travels in a file of mode 0600 that is sourced, never on a command line: it may hold a token.

    Returns:
        The state right after.

    Raises:
        AlreadyLaunched: the lock is taken; `state` tells by what. `retire` frees it once that has ended.
        HostLost: it may or may not have been launched: `state` tells.
        TransferFailed, DiskFull: nothing was started.
        InputError: a variable's name is none, or the folder is not absolute.
    """
    if not job_folder.startswith("/"):
        raise InputError(f"the job folder {job_folder} is not an absolute path")
    now = state(host, job_folder)
    if now.phase is not JobPhase.ABSENT:
        raise _already(host, job_folder)
    if env:
        host.make_folder(job_folder)
        host.write(f"{job_folder}/env", _exports(env).encode(), mode=0o600)
    result = host.run(["bash", "-c", _LAUNCH, "bruno-launch", job_folder, _WRAPPER, *argv])
    if result.exit_code == _LOCKED:
        raise _already(host, job_folder)
    _done(result, f"launch {argv[0]} in {job_folder}")
    return state(host, job_folder)


def state(host: Host, job_folder: str) -> JobState:
    """What the machine's process table and the job's files say. Raises HostLost; anything unclear is UNKNOWN, never a guess."""
    result = host.run(["bash", "-c", _STATE, "bruno-state", job_folder])
    if not result.ok:
        return JobState(JobPhase.UNKNOWN, detail=str(safe_line(result.stderr)) or f"exit code {result.exit_code}")
    return read_state(result.stdout)


def retire(host: Host, job_folder: str) -> None:
    """Put an ended launch's files aside (`lock.1`, `lock.2`, ...) so that the job can be launched again. The log stays.

    Raises:
        AlreadyLaunched: it still runs, or that cannot be told.
        HostLost, TransferFailed.
    """
    now = state(host, job_folder)
    if now.phase in {JobPhase.RUNNING, JobPhase.UNKNOWN}:
        raise AlreadyLaunched(
            f"the job in {job_folder} on instance {host.instance_id} is {now.phase.value}; nothing was put aside",
            fix="Wait until it has ended, or stop it first",
        )
    _done(host.run(["bash", "-c", _RETIRE, "bruno-retire", job_folder]), f"put the launch in {job_folder} aside")


def read_state(text: str) -> JobState:
    """The state from the lines `name=value` that the machine printed. Pure."""
    facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if facts.get("lock") == "none":
        return JobState(JobPhase.ABSENT)
    if facts.get("lock") != "held" or "job" not in facts or "wrapper" not in facts:
        return JobState(
            JobPhase.UNKNOWN, detail="the machine shows no process table" if "proc" in facts else "no answer that tells"
        )
    job, wrapper = facts["job"].split(), facts["wrapper"].split()
    pid, started = (_integer(word) for word in (*job[1:3], "", "")[:2])
    launched, now = _integer(facts.get("launched")), _integer(facts.get("now"))
    code = _integer(facts.get("exit"))
    if code is not None:
        phase, detail = JobPhase.FINISHED, ""
    elif job[0] == "alive":
        phase, detail = (
            JobPhase.RUNNING,
            "" if wrapper[0] == "alive" else "its wrapper was killed: no exit code will come",
        )
    elif wrapper[0] == "alive":
        phase, detail = JobPhase.RUNNING, "starting or ending"
    elif job[0] == "none" and launched is not None and now is not None and 0 <= now - launched < 10:
        phase, detail = JobPhase.UNKNOWN, "launched a moment ago, its process is not written down yet"
    elif job[0] == "none":
        phase, detail = JobPhase.LOST, "the launch was cut off before the job began"
    else:
        phase, detail = JobPhase.LOST, "killed without an exit code, or the machine went down"
    return JobState(
        phase,
        exit_code=code,
        pid=pid,
        started=started,
        launched_at=None if launched is None else datetime.fromtimestamp(launched, UTC),
        out_of_memory="oom" in facts and (phase is JobPhase.LOST or code == 137),
        detail=detail,
    )


def _exports(env: Mapping[str, str]) -> str:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise InputError(f"{name!r} is no name of an environment variable")
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in env.items())


def _already(host: Host, job_folder: str) -> AlreadyLaunched:
    return AlreadyLaunched(
        f"a job was launched in {job_folder} on instance {host.instance_id} before; a second one beside it is refused",
        fix="Follow the one that is there",
    )


def _done(result: Completed, doing: str) -> None:
    if not result.ok:
        said = safe_line(result.stderr) or f"exit code {result.exit_code}"
        raise TransferFailed(f"could not {doing}: {said}")


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None
