"""Several workers on this machine: one process for each GPU, or a share of the CPU's threads each; one log for all.

The run that was started makes the study, starts `worker` processes (`worker.py`), reads their `events.jsonl`, and tells
their story as one. It scores nothing itself, so that no GPU holds the model twice. One that dies is started again; its
trials come back by their heartbeats, as those of a worker on another machine do.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bruno.engine import events as ev
from bruno.engine.folder import WORKERS_FOLDER
from bruno.engine.log import EVENTS_FILE
from bruno.errors import BrunoError, InputError
from bruno.settings.load import RESERVED

if TYPE_CHECKING:
    from bruno.settings.engine import EngineSettings

RESTARTS = 3
"""How often each worker is started again before the others go on without it."""

INTERRUPTED, REFUSED = 130, 2
_LOOK = 0.2  # seconds between two looks at the workers
_ROOM = 1.25  # memory of a GPU beside the weights: cache, captures, the edits


def worker_name() -> str:
    """Unique among all workers of a study: host, process, and chance, because process numbers come again."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def crew_of(settings: EngineSettings, emit: ev.Emit) -> Crew | None:
    """The workers that `search.workers` asks for here; None when this process is to search alone.

    Raises:
        InputError: more than the GPUs hold, or a device that all of them would have to share.
    """
    wanted, device = settings.search.workers, settings.loading.device
    if wanted == 1:
        return None
    gpus = [] if device == "cpu" else visible_gpus()
    if not gpus:
        if wanted == "auto":
            return None
        threads = max(1, (settings.loading.threads or len(os.sched_getaffinity(0))) // wanted)
        return Crew(settings, [Place(threads=threads) for _ in range(wanted)])
    if device not in ("auto", "cuda"):
        raise InputError(f"Workers cannot share the device {device}", fix="Say --loading.device auto")
    needed = gpus_needed(settings)
    most = len(gpus) // needed
    if wanted != "auto" and wanted > most:
        raise InputError(
            f"{len(gpus)} GPUs hold {most} workers, not {wanted}: the model needs {needed}",
            fix=f"Say --workers {max(1, most)} or auto",
        )
    count = most if wanted == "auto" else wanted
    if count <= 1:
        return None
    text = f"{count} workers, each on {needed} GPU{'s' * (needed > 1)}"
    emit(ev.Notice(text=text))
    return Crew(settings, [Place(gpus=tuple(gpus[i * needed : (i + 1) * needed])) for i in range(count)])


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


def gpus_needed(settings: EngineSettings) -> int:
    """Over how many GPUs one copy of the model is spread: its weights and a quarter, in the smallest GPU's memory."""
    import torch

    from bruno.engine.model.loading import locate

    weights = sum(path.stat().st_size for path in locate(settings).glob("*.safetensors"))
    share = {"none": 1.0, "int8": 0.5, "nf4": 0.3}[settings.loading.quantization]
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return max(1, math.ceil(weights * share * _ROOM / memory))


@dataclass(frozen=True)
class Place:
    """What of the machine is one worker's: GPUs, or so many threads."""

    gpus: tuple[str, ...] = ()
    threads: int = 0


@dataclass
class Crew:
    """The workers of one run on this machine."""

    settings: EngineSettings
    places: list[Place]

    def search(self, place: tuple[str, str], identity: dict[str, str], folder: Path, emit: ev.Emit) -> bool:
        """Have the study searched by the workers until it is whole.

        Args:
            place: storage and name of the study, which is made if it is not there.
            identity: its fingerprint.
            folder: the run's; the workers' folders, and the directions that they share, are in it.

        Returns:
            True when the study is whole, False when it was asked to stop first.

        Raises:
            BrunoError: the workers are refused, or all of them have died too often.
        """
        from bruno.engine.search.board import look
        from bruno.engine.search.storage import GRACE, open_study
        from bruno.engine.search.study import stop_on_signals

        stored, beat = self.settings.model_dump(mode="json"), self.settings.search.heartbeat
        trials = self.settings.search.trials
        study = open_study(*place, identity, heartbeat=beat, settings=stored)
        decided = len(look(study, trials).decided)
        if decided >= trials:
            return True
        if decided:
            emit(ev.Resumed(next_trial=decided + 1, completed=decided))
        story = Story(emit, trials, decided)
        members = [Member(n, each, self._command(n, each, place[1], folder), place[0], folder, emit)
                   for n, each in enumerate(self.places, 1)]  # fmt: skip
        with stop_on_signals() as stop:
            try:
                for member in members:
                    member.start()
                whole_since = told = None
                while any(member.working for member in members):
                    time.sleep(_LOOK)
                    for member in members:
                        story.tell(member)
                        member.look_after(stopping=stop.requested)
                    if stop.requested and told is None:
                        told = [member.ask_to_stop() for member in members]
                    if whole_since is None and any(member.code == 0 for member in members):
                        whole_since = time.monotonic()
                    if whole_since is not None and time.monotonic() - whole_since > GRACE * beat:
                        for member in members:
                            member.end("it did not notice that the study is whole")
            finally:
                for member in members:
                    member.end("")
                    story.tell(member)
        decided = len(look(study, trials).decided)
        if decided >= trials:
            return True
        if stop.requested:
            emit(ev.Interrupted(completed=decided, trials=trials))
            return False
        said = next((member.last_words() for member in members if member.last_words()), "see their folders")
        raise BrunoError(f"No worker is left, and {trials - decided} of {trials} trials have no result ({said})")

    def _command(self, number: int, place: Place, study: str, folder: Path) -> list[str]:
        own = folder / WORKERS_FOLDER / str(number)
        command = [sys.executable, "-m", "bruno.engine", "worker", "--study", study, "--out", str(own)]
        command += ["--config", str(own / "config.toml"), "--kept", str(folder), "--with-parent"]
        command += ["--deal"] * (number == 1)
        command += ["--trust-remote-code"] * self.settings.trust_remote_code
        command += ["--loading.threads", str(place.threads)] * bool(place.threads)
        return command


@dataclass
class Member:
    """One worker process, started again where it died."""

    number: int
    place: Place
    command: list[str]
    storage: str
    run: Path
    emit: ev.Emit
    starts: int = 0
    code: int | None = None
    offset: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.run / WORKERS_FOLDER / str(self.number)

    @property
    def working(self) -> bool:
        return self.process is not None and self.code is None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches it through us alone; our end closes its input."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text("")  # the study's settings, and no file that happens to lie here
        log = self.folder / EVENTS_FILE
        if not self.starts:
            self.offset = log.stat().st_size if log.exists() else 0
        self.starts, self.code = self.starts + 1, None
        # What the environment says was weighed when the run's settings were made, and is in the study.
        own = {key: value for key, value in os.environ.items() if not key.startswith("BRUNO_") or key in RESERVED}
        own["BRUNO_SEARCH__STORAGE"] = self.storage
        if self.place.gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpus)
        if self.place.threads:
            own["OMP_NUM_THREADS"] = str(self.place.threads)
        with (self.folder / "worker.log").open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                env=own,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look_after(self, *, stopping: bool) -> None:
        """Notice that it has ended; start it again where that was not its own will."""
        if not self.working or self.process is None or (code := self.process.poll()) is None:
            return
        self.code = code
        if code in (0, INTERRUPTED, REFUSED) or stopping:
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self.starts > RESTARTS:
            text = f"Worker {self.number} ended again ({how}: {self.last_words()}); the others go on without it"
            self.emit(ev.Notice(text=text, level="warning"))
            return
        self.emit(ev.Notice(text=f"Worker {self.number} ended ({how}) and is started again", level="warning"))
        self.start()

    def ask_to_stop(self) -> None:
        """It ends after its batch."""
        if self.working and self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, why: str) -> None:
        """End it now; whatever it held comes back by its heartbeats."""
        if not self.working or self.process is None:
            return
        self.process.kill()
        self.code = self.process.wait()
        if why:
            self.emit(ev.Notice(text=f"Worker {self.number} was ended: {why}", level="warning"))

    def last_words(self) -> str:
        """The last line of what it printed, where it failed."""
        if self.code in (0, INTERRUPTED, None):
            return ""
        lines = (self.folder / "worker.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return (lines or ["it said nothing"])[-1].removeprefix("Error: ")

    def news(self) -> list[ev.Event]:
        """What it has reported since the last look, as far as lines are whole."""
        try:
            with (self.folder / EVENTS_FILE).open("rb") as file:
                file.seek(self.offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                found.append(ev.parse_event(line))
            except ValidationError:
                continue  # cut short by a kill; the next start ends that line
        return found


@dataclass
class Story:
    """The workers' events as one log: each trial a whole block, what all of them say alike once."""

    emit: ev.Emit
    trials: int
    completed: int
    _began: float = field(default_factory=time.monotonic)
    _before: int = -1
    _started: dict[int, ev.TrialStarted] = field(default_factory=dict)
    _once: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._before = self.completed

    def tell(self, member: Member) -> None:
        """Pass on what a worker has reported."""
        for event in member.news():
            match event:
                case ev.TrialStarted():
                    self._started[event.trial] = event
                case ev.TrialScored() | ev.TrialStopped() | ev.TrialFailed():
                    started = self._started.pop(event.trial, None)
                    if started is not None:
                        self.emit(started)
                    self.emit(event)
                case ev.ModelLoaded() | ev.InitialScores():
                    self._say_once(type(event).__name__, event)
                case ev.Fallback():
                    self._say_once(f"{event.method} {event.reason}", event)
                case ev.OutOfMemory():
                    self.emit(event)
                case ev.Notice() if event.level == "warning":
                    self.emit(ev.Notice(text=f"Worker {member.number}: {event.text}", level="warning"))
                case ev.Notice() if event.text.startswith("Directions from"):
                    self._say_once(event.text, event)
                case ev.Failed():
                    text = f"Worker {member.number} failed: {event.message}"
                    self.emit(ev.Notice(text=text, level="warning"))
                case ev.Progress():
                    self._progress(event.completed)
                case _:
                    pass  # its start, its end, and its place in the crew are told by the crew

    def _say_once(self, key: str, event: ev.Event) -> None:
        if key not in self._once:
            self._once.add(key)
            self.emit(event)

    def _progress(self, completed: int) -> None:
        if completed <= self.completed:
            return
        self.completed = completed
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, completed - self._before) * (self.trials - completed)
        self.emit(ev.Progress(completed=completed, trials=self.trials, elapsed_seconds=elapsed, remaining_seconds=left))
