"""The engine's command line: `python -m bruno.engine [abliterate] MODEL --search.trials 8 ...`, `... chat MODEL`, and
`... explain`, `export` and `reproduce` for what a run left behind (`after.py`).

Reads the settings, opens the run's folder, turns every failure into one line and an exit code. Heavy imports happen
after the arguments were read, so a wrong setting is told at once.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bruno.engine.events import Failed
from bruno.engine.folder import LIBRARIES_FILE, STUDY_FILE, run_folder, write_whole
from bruno.engine.log import Emitter, keep_warnings
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings
from bruno.settings.secrets import redact

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells expect it."""

AFTER = ("explain", "export", "reproduce")
"""Verbs on what a run left behind; each is a function of `after.py`."""
VERBS = ("abliterate", "chat", "worker", *AFTER)

_KEPT = "What was scored so far is kept; the same command goes on from there"


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code is 0 only when all that was asked for is done."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    verb, rest = (argv[0], argv[1:]) if argv and argv[0] in VERBS else ("abliterate", argv)
    # A rented machine is told to stop with SIGTERM: leave through the same door as Ctrl-C, so that half a model is
    # removed.
    if _in_main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if verb == "chat":
            return chat(rest)
        if verb == "worker":
            return worker(rest)
        if verb in AFTER:
            from bruno.engine import after

            return getattr(after, verb)(rest)
        return abliterate(load_settings(rest))
    except BrunoError as error:
        sys.stderr.write(f"Error: {redact(_one_line(error))}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def load_settings(argv: Sequence[str]) -> EngineSettings:
    """The engine's part of the settings in force; a model's short name becomes its id.

    Only what was said is kept, so that a behaviour's own defaults can tell it from what was left open.

    Raises:
        InputError: an unknown setting or value, or no model.
    """
    from bruno.settings.load import load

    settings = load(argv)
    given = settings.model_dump(exclude_unset=True, include=set(EngineSettings.model_fields))
    alias = settings.models.get(settings.model)
    if alias is not None:
        given["model"] = alias.id
        given.setdefault("trust_remote_code", alias.trust_remote_code)
        if alias.behaviour:
            given.setdefault("behaviour", alias.behaviour)
    if not given.get("model"):
        raise InputError("No model was named", fix="Give a hub id, a local folder, or demo")
    return EngineSettings.model_validate(given)


def worker(argv: Sequence[str]) -> int:
    """`worker --study NAME [--wait SECONDS] [settings]`: score trials of a study that a run has made, until it is whole.

    The storage is better said in the environment (BRUNO_SEARCH__STORAGE) than here, where every user of the machine sees it.

    Raises:
        BrunoError: a wrong option or setting; what happens later is an event of the folder's log.
    """
    options, rest = _WorkerOptions(prog="worker", add_help=False, allow_abbrev=False).parse_known_args(list(argv))
    from bruno.settings.load import load

    settings = load(rest)
    given = settings.model_dump(exclude_unset=True, include=set(EngineSettings.model_fields))
    if options.with_parent:
        _end_with_parent()

    def work(folder: Path, emit: Emitter) -> int:
        from bruno.engine.worker import Joining
        from bruno.engine.worker import work as join

        joining = Joining(given, wait=options.wait, deals=options.deal, kept=options.kept)
        return 0 if join(joining, folder, emit) else INTERRUPTED

    return in_folder(Path(given.get("out", "worker")), work)


class _WorkerOptions(argparse.ArgumentParser):
    """What a worker takes beside the engine's settings; the last three are for a run that starts its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("--wait", type=float, default=0.0)
        self.add_argument("--kept", type=Path, default=None)
        self.add_argument("--deal", action="store_true")
        self.add_argument("--with-parent", action="store_true")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"worker: {message}")


def _end_with_parent() -> None:
    """Stop as after Ctrl-C when our input ends: the run that started this worker is gone, whatever ended it."""
    import threading

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock this thread would hold when the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def model_id(name: str) -> str:
    """The id behind a short name of the settings, or the name itself."""
    return load_settings([name]).model


def chat(argv: Sequence[str]) -> int:
    """`chat MODEL [--beside OTHER] [--json] [--max-new-tokens N] [settings]`: a conversation until the input ends.

    Raises:
        BrunoError: a wrong option, or a model that cannot be loaded.
    """
    options, rest = _ChatOptions(prog="chat", add_help=False, allow_abbrev=False).parse_known_args(list(argv))
    settings = load_settings(rest)
    beside = model_id(options.beside) if options.beside else ""
    tame_libraries()
    # Unlike a run, a conversation has nothing to save: SIGTERM ends it as it would any other program.
    if _in_main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from bruno.engine.chat import converse

    return converse(settings, beside=beside, json_lines=options.json, longest=options.max_new_tokens)


class _ChatOptions(argparse.ArgumentParser):
    """What chat takes beside the engine's settings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_argument("--beside", default="")
        self.add_argument("--json", action="store_true")
        self.add_argument("--max-new-tokens", type=int, default=512)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"chat: {message}")


def abliterate(settings: EngineSettings) -> int:
    """One run in `settings.out`; what goes wrong is an event in its log too."""

    def work(folder: Path, emit: Emitter) -> int:
        from bruno.engine.run import run

        return 0 if run(settings, folder, emit) else INTERRUPTED

    return in_folder(Path(settings.out), work)


def in_folder(path: Path, work: Callable[[Path, Emitter], int], *, failures_logged: bool = True) -> int:
    """Do something heavy under a run folder's lock, with its log; every failure becomes one line and an exit code.

    Args:
        work: returns the exit code; may import the heavy half.
        failures_logged: a failure ends the run's own story in `events.jsonl`. Off: it is said on the screen alone,
            because the run itself is as it was.

    Raises:
        BrunoError: the folder cannot be used.
    """
    with run_folder(path) as folder, Emitter(folder) as emit:

        def tell(message: str) -> None:
            if failures_logged:
                _tell(emit, folder, message)
            else:
                Emitter(None)(Failed(message=message))

        try:
            return _explained(work, folder, emit)
        except BrunoError as error:
            tell(_one_line(error))
            return error.exit_code
        except KeyboardInterrupt:
            tell("Interrupted")
            return INTERRUPTED
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            tell(f"{error.strerror or error}{where}")
            return 1
        except Exception as error:  # noqa: BLE001  (the last door: a defect is one line here, and whole in a file)
            crash = folder / "crash.log"
            write_whole(crash, lambda target: target.write_text(redact(traceback.format_exc())))
            tell(f"Unexpected {type(error).__name__}: {_one_line(error)}. The whole of it is in {crash}")
            return 1


def _explained(work: Callable[[Path, Emitter], int], folder: Path, emit: Emitter) -> int:
    """Import the heavy half and work; a study that cannot be written is an error of ours to explain."""
    tame_libraries(folder / LIBRARIES_FILE)  # before anything imports them
    from bruno.engine.search.storage import STORAGE_ERRORS, reason

    try:
        return work(folder, emit)
    except STORAGE_ERRORS as error:
        raise BrunoError(
            f"The study cannot be read or written ({reason(error)})", fix="Make room or check search.storage"
        ) from error


def tame_libraries(file: Path | None = None) -> None:
    """Make good neighbours of the libraries, before they are imported: no progress bars or advice in our log, no
    spinning.

    Args:
        file: where their warnings go instead; nowhere when None.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # torch's threads sleep while they wait for each other instead of spinning: where anything else runs on the cores
    # (the console, on a laptop) spinning made the same work three to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_warnings(file)
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _tell(emit: Emitter, folder: Path, message: str) -> None:
    """The failure as the log's last event; a disk too full for that still leaves the human line."""
    try:
        emit(Failed(message=message, kept=_KEPT if (folder / STUDY_FILE).exists() else ""))
    except OSError as error:
        sys.stderr.write(f"Error: the log cannot be written either ({error.strerror})\n")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
