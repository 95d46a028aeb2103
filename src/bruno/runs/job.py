"""The steps that run something on the machine: install, try, launch, follow. Each process is detached, locked, launched once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno.errors import RunFailed, Unreachable
from bruno.fleet import files, jobs, parcel
from bruno.fleet.errors import AlreadyLaunched
from bruno.fleet.host import Host
from bruno.fleet.jobs import JobPhase, JobState
from bruno.guard.actions import RunPlaybook
from bruno.guard.sanitise import safe_line
from bruno.runs import playbook as book
from bruno.runs.database import VARIABLE, Database, address_of, same_place
from bruno.runs.events import Kind
from bruno.runs.home import EVENTS, LOG
from bruno.runs.readers import LogReader
from bruno.runs.tail import bring
from bruno.settings.engine import EngineSettings
from bruno.settings.render import travelling

if TYPE_CHECKING:
    from bruno.runs.task import Task

Detail = dict[str, Any]
TELL_MINUTES = 0.1
ENDED = frozenset({JobPhase.FINISHED, JobPhase.LOST})
_GPUS = re.compile(r"^\* Engine .* GPUs (\d+)$", re.MULTILINE)
_INSTALLER = Path(__file__).with_name("install.sh")


@dataclass(frozen=True)
class Places:
    """Where a run's things lie on the machine. Absolute paths."""

    root: str

    @classmethod
    def of(cls, host: Host, run_id: str) -> Places:
        return cls(f"{host.workspace()}/bruno/{run_id}")

    @property
    def out(self) -> str:
        """The engine's run folder: study, events.jsonl, the saved model."""
        return f"{self.root}/out"

    @property
    def job(self) -> str:
        return f"{self.root}/job"

    @property
    def log(self) -> str:
        return f"{self.job}/log"

    @property
    def config(self) -> str:
        return f"{self.root}/config.toml"


def engine_settings(task: Task) -> EngineSettings:
    """The engine's settings that were confirmed with the plan."""
    return EngineSettings.model_validate(task.run.settings)


def install(task: Task, step: book.Install) -> Detail:
    """Send the wheel and install it in an environment that sees the image's torch. Detached: it may take many minutes."""
    wheel = parcel.build(task.world.paths.cache / "engine")

    def send(host: Host) -> Places:
        places = Places.of(host, task.run_id)
        host.make_folder(places.root)
        files.send(host, wheel, f"{places.root}/{wheel.name}", cancel=task.cancel)
        host.write(f"{places.root}/install.sh", _INSTALLER.read_bytes())
        return places

    places = task.on_host(send)
    venv = f"{places.root}/venv"
    extras = ["[postgres]"] if database_of(task) is not None else []
    argv = ["bash", f"{places.root}/install.sh", f"{places.root}/{wheel.name}", venv, *extras]
    local = task.home / "install.log"
    state = run_to_its_end(task, f"{places.root}/install", argv, local=local, minutes=step.minutes, doing="installing")
    if state.exit_code != 0:
        raise RunFailed(
            f"installing the engine failed ({how_it_ended(state)}): {last_words(local)}", fix=f"See {local}"
        )
    gpus = _GPUS.findall(local.read_text(encoding="utf-8", errors="replace"))
    if gpus and gpus[-1] == "0":
        task.tell(Kind.WARNING, "torch sees no GPU on this machine: the engine will run on its CPU, which is slow")
    return {"python": f"{venv}/bin/python", "wheel": wheel.name, "gpus": int(gpus[-1]) if gpus else None}


def smoke(task: Task, step: book.Smoke) -> Detail:
    """Two trials before a long search, saving nothing: what would break after an hour breaks now."""
    settings = engine_settings(task)
    if settings.search.trials < step.only_from_trials:
        return {"skipped": f"{settings.search.trials} trials are few"}
    places = task.on_host(lambda host: Places.of(host, task.run_id))
    small = Places(f"{places.root}/smoke")
    said = settings.model_dump(mode="json", exclude_unset=True)
    said["search"] = {**said.get("search", {}), "trials": step.trials, "storage": "", "study": ""}
    said["export"] = {**said.get("export", {}), "save": False}
    said["scoring"] = {**said.get("scoring", {}), "held_out": False}
    config = _write_config(task, small, EngineSettings.model_validate(said), "smoke.toml")
    local = task.home / "smoke.log"
    state = run_to_its_end(
        task,
        small.job,
        engine_argv(task, config),
        env=engine_environment(task),
        local=local,
        minutes=step.minutes,
        doing=f"trying {step.trials} trials",
    )
    reader = LogReader()
    reader.feed(local.read_bytes())
    if state.exit_code != 0 or not reader.progress.completed:
        why = reader.progress.failed or last_words(local)
        raise RunFailed(
            f"the engine failed its first {step.trials} trials ({how_it_ended(state)}): {why}", fix=f"See {local}"
        )
    task.tell(Kind.NOTICE, f"the first {reader.progress.completed} trials worked; the whole search can begin")
    return {"trials": reader.progress.completed}


def launch(task: Task, _step: book.Launch) -> Detail:
    """Write the settings there and launch the engine, detached and under a lock. Launched before: nothing."""
    places = task.on_host(lambda host: Places.of(host, task.run_id))
    config = _write_config(task, places, engine_settings(task), "config.toml")
    argv = engine_argv(task, config)
    task.note(job=places.job, out=places.out)
    database = database_of(task)
    # In a file of mode 0600 that the process's shell reads: neither a command line nor config.toml shows the password.
    login = {VARIABLE: database.url} if database is not None else {}
    state = launch_once(task, places.job, argv, {**engine_environment(task), **login})
    task.tell(Kind.NOTICE, f"the engine is {state.phase.value} on instance {task.instance_id} (process {state.pid})")
    return {"job": places.job, "out": places.out, "pid": state.pid}


def engine_argv(task: Task, config: str) -> list[str]:
    """The plan's own command line, with the environment's Python and the config's place on the machine."""
    action = next(step.action for step in task.plan.steps if isinstance(step.action, RunPlaybook))
    python = task.row("install").detail["python"]
    names = {"python": python, "config.toml": config}
    return [names.get(word, word) for word in (action.engine_argv if task.leads else action.worker_argv)]


def database_of(task: Task) -> Database | None:
    """The shared database that was confirmed with the plan, with its password from the settings in force; None: there is none.

    Raises:
        Denied: the settings name another one now.
    """
    confirmed = str(task.run.settings.get("search", {}).get("storage", ""))
    if not address_of(confirmed).host:
        return None
    database = address_of(task.world.settings.search.storage)
    same_place(database, confirmed)
    return database


def engine_environment(task: Task) -> dict[str, str]:
    return {"PYTHONUNBUFFERED": "1", **task.world.secrets}


def _write_config(task: Task, places: Places, settings: EngineSettings, name: str) -> str:
    """config.toml on the machine and beside the run at home; `out` is the run's folder there."""
    data = settings.model_dump(mode="json", exclude_unset=True) | {"out": places.out}
    text = travelling(EngineSettings.model_validate(data)).encode()
    task.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (task.home / name).write_bytes(text)

    def write(host: Host) -> None:
        host.make_folder(places.root)
        host.write(places.config, text)

    task.on_host(write)
    return places.config


# --- detached processes ---


def launch_once(task: Task, job: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> JobState:
    """Launch `argv` in the folder `job` unless that was done before; the job's state.

    Only `retry` launches a job again, where it ended badly, and only once for each time it is asked for: which end was put aside
    is recorded first, so that a restart in between neither loses the retry nor repeats it.
    """

    def attempt(host: Host) -> JobState:
        state = jobs.state(host, job)
        if state.phase in ENDED and _asked_again(task, state):
            jobs.retire(host, job)
            state = jobs.state(host, job)
        if state.phase is not JobPhase.ABSENT:
            return state
        try:
            return jobs.launch(host, job, argv, env)
        except AlreadyLaunched:
            return jobs.state(host, job)

    return _until_known(task, attempt, job)


def _asked_again(task: Task, state: JobState) -> bool:
    """Whether an end is to be put aside.

    One that went well while nobody looked is no reason to load a model again, whatever is asked, unless what it left did not
    pass its check.
    """
    end = [state.pid, state.started]
    if not task.retry:
        return task.row(task.step).detail.get("retired") == end
    rejected = any(row.problem for row in task.world.records.steps(task.run_id) if row.name == "verify")
    if state.exit_code == 0 and not rejected:
        return False
    task.retry = False
    task.note(retired=end)
    return True


def _until_known(task: Task, ask: Callable[[Host], JobState], job: str) -> JobState:
    """The first answer that tells; Unreachable when the machine keeps giving none."""
    state = task.on_host(ask)
    for _ in range(10):
        if state.phase is not JobPhase.UNKNOWN:
            return state
        task.rest(2)
        state = task.on_host(ask)
    raise Unreachable(f"whether the job in {job} runs cannot be told: {state.detail}", fix="Look again in a minute")


def run_to_its_end(
    task: Task,
    job: str,
    argv: Sequence[str],
    *,
    local: Path,
    minutes: float,
    doing: str,
    env: Mapping[str, str] | None = None,
) -> JobState:
    """Launch once, bring its output to `local` while it runs, and return how it ended.

    Raises:
        RunFailed: it still runs after `minutes`; it is left running.
    """
    launch_once(task, job, argv, env)
    over, quiet = task.deadline(minutes), task.deadline(0)
    while True:
        # The state first: what is read after a process has ended is all that it said.
        state = _until_known(task, lambda host: jobs.state(host, job), job)
        task.on_host(lambda host: bring(host, f"{job}/log", local))
        if state.phase in ENDED:
            return state
        if quiet():
            quiet = task.deadline(TELL_MINUTES)
            task.tell(Kind.WAITING, f"{doing}: {_in_short(last_words(local))}")
        if over():
            raise RunFailed(
                f"{doing} takes longer than {minutes:g} minutes and goes on there: {last_words(local)}",
                fix=f"See {local}",
            )
        task.rest(task.poll)


def bring_all(host: Host, places: Places, home: Path) -> int:
    """The log and the events, as far as they are; how many bytes came."""
    return bring(host, places.log, home / LOG) + bring(host, f"{places.out}/{EVENTS}", home / EVENTS)


def last_words(local: Path) -> str:
    """The last line of a log that says something, fit for a screen."""
    if not local.exists():
        return "nothing yet"
    with local.open("rb") as file:
        file.seek(max(0, local.stat().st_size - 4096))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return str(safe_line(lines[-1], 300)) if lines else "nothing yet"


def _in_short(words: str) -> str:
    """pip's line about what is there already, without the folder and the chain of packages that asked for it."""
    return re.sub(r"Requirement already satisfied: (\S+) .*", r"\1 is there already", words)


def how_it_ended(state: JobState) -> str:
    """Exit code, or what is known instead."""
    if state.out_of_memory:
        return "the kernel killed it: out of memory"
    return f"exit code {state.exit_code}" if state.exit_code is not None else state.detail or state.phase.value
