"""Where a study is kept: an SQLite file in the run's folder, or a database server that any number of workers share.

Touches the storage and nothing else. Everything that keeps trials apart and brings lost ones back is Optuna's own
(`RDBStorage`: heartbeats, the grace period, `RetryHeartbeatStaleTrialCallback`); this file opens it, `rdb.py` says what of its
transactions is ours.
"""

from __future__ import annotations

import re
import sqlite3
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy.event
import sqlalchemy.exc
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from bruno.engine.search.rdb import SharedStorage
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import hide_password
from bruno.settings.secrets import hide_url, redact

STORAGE_ERRORS = (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
"""What a storage raises when it cannot be read or written (a full disk, a lost connection)."""

LOST = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)
"""What it raises when the connection is lost: the same call may work a moment later."""

RETRIES = 3
"""How often a trial whose worker fell silent is given out again. One that silences every worker is given up."""

GRACE = 4
"""After so many intervals without a heartbeat a worker is taken for dead."""

PATIENCE = 600.0
"""Seconds that a lost database server is waited for before a worker gives up: a restart, an upgrade, a lost network."""

_Result = TypeVar("_Result")


class StudyMismatch(InputError):
    """The stored study was made from something else (model, prompts, settings, engine); going on would mix two
    searches."""


class NoStudy(InputError):
    """There is no study of that name in the storage (yet)."""


def on_server(storage: str) -> bool:
    """Whether a storage is a database server, which other machines may work on at the same time."""
    return "://" in storage and not storage.startswith("sqlite")


def open_study(
    storage: str, name: str, fingerprint: dict[str, str], *, heartbeat: int = 0, settings: dict[str, Any] | None = None
) -> optuna.Study:
    """The study of this name, made if it is not there.

    Args:
        storage: an Optuna storage URL, or the path of an SQLite file.
        name: the study's name in that storage.
        fingerprint: what the study's numbers depend on, part by part (`model`, `search prompts`, a setting's name ...).
        heartbeat: seconds between signs of life of a worker; 0 for a study that one process works on alone.
        settings: kept in the study for those who join it by its name.

    Raises:
        StudyMismatch: a study of that name was made from something else; the message lists what differs.
        BrunoError: the storage cannot be opened.
    """

    def made() -> optuna.Study:
        study = optuna.create_study(
            storage=_storage(storage, heartbeat),
            study_name=name,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        if "fingerprint" not in study.user_attrs:
            study.set_user_attr("fingerprint", fingerprint)
        return study

    study = _opened(storage, made)
    check_fingerprint(study, fingerprint)
    if settings is not None and study.user_attrs.get("settings") != settings:
        study.set_user_attr("settings", settings)
    return study


def join_study(storage: str, name: str, *, heartbeat: int) -> optuna.Study:
    """The study of this name, which a run has made, and (with a heartbeat) opened to workers.

    Raises:
        NoStudy: none has, or not yet.
        BrunoError: the storage cannot be opened.
    """

    def found() -> optuna.Study | None:
        try:
            return optuna.load_study(storage=_storage(storage, heartbeat), study_name=name)
        except KeyError:
            return None

    study = _opened(storage, found)
    needed = {"fingerprint", "settings"} if heartbeat else {"fingerprint"}
    if study is None or not needed <= study.user_attrs.keys():
        raise NoStudy(
            f"{hide_password(storage)} holds no study {name} that a run has opened to workers",
            fix="Start bruno abliterate with the same storage and study first, or say --wait SECONDS",
        )
    return study


def check_fingerprint(study: optuna.Study, fingerprint: dict[str, str]) -> None:
    """Raise StudyMismatch, naming what differs, unless the study was made from the same things."""
    stored = study.user_attrs["fingerprint"]
    if stored == fingerprint:
        return
    differing = sorted(key for key in {*stored, *fingerprint} if stored.get(key) != fingerprint.get(key))
    changes = "; ".join(
        f"{key}: {stored.get(key, 'nothing')} then, {fingerprint.get(key, 'nothing')} now" for key in differing
    )
    raise StudyMismatch(
        f"The study {study.study_name} was made from something else ({changes})",
        fix="Set it back to go on, or start afresh with another --out or --search.study",
    )


def persist(action: Callable[[], _Result], say: Callable[[str], None], seconds: float = PATIENCE) -> _Result:
    """The action's result; tried again while the connection is lost, for so many seconds.

    Args:
        say: hears once that the storage does not answer, and once that it does again.
    """
    silent = []

    def lost(state: RetryCallState) -> None:
        if not silent and state.outcome is not None:
            silent.append(1)
            say(f"The study's storage does not answer ({reason(state.outcome.exception())}); trying again")

    tries = Retrying(
        retry=retry_if_exception_type(LOST),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(0.2, max=5),
        before_sleep=lost,
        reraise=True,
    )
    result = tries(action)
    if silent:
        say("The study's storage answers again")
    return result


def let_go(study: optuna.Study) -> None:
    """Close this process's connections; one is opened again when the study is next read."""
    storage = study._storage
    if isinstance(storage, optuna.storages._CachedStorage):
        storage._backend.engine.dispose()


def reason(error: BaseException | None) -> str:
    """The innermost cause in one line, without a password: Optuna and SQLAlchemy wrap the useful sentence in general
    ones."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])


def _opened(storage: str, opening: Callable[[], _Result]) -> _Result:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    hide_url(storage)
    try:
        # Two processes may make the tables of a new database at the same time: one of them has to look again.
        return persist(opening, lambda _: None, seconds=2 if on_server(storage) else 0)
    except (*STORAGE_ERRORS, OSError, ValueError, ImportError) as error:
        fix = "Check search.storage"
        if isinstance(error, ImportError) and storage.startswith("postgres"):
            fix = 'pip install "bruno[postgres]"'
        raise BrunoError(
            f"The study storage {hide_password(storage)} cannot be opened ({reason(error)})", fix=fix
        ) from (None if on_server(storage) else error)  # drivers put the whole URL into their chain of causes


def _storage(storage: str, heartbeat: int) -> optuna.storages.RDBStorage:
    """Optuna's storage for a URL or the path of an SQLite file; with heartbeats where workers share it."""
    options: dict[str, Any] = {}
    if heartbeat:
        with warnings.catch_warnings():  # "experimental" since Optuna 2.8; its behaviour is held by our tests
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            again = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        options = {
            "heartbeat_interval": heartbeat,
            "grace_period": GRACE * heartbeat,
            "heartbeat_stale_trial_callback": again,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _server(storage, options) if on_server(storage) else _sqlite(storage, options)


def _server(url: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    """A database server. Connections are tried before they are used, so that its restart costs no trial."""
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgres"):
        # psycopg, whatever SQLAlchemy's version takes by itself; `***` is a password that stayed behind on purpose:
        # libpq then looks for one in PGPASSWORD, PGPASSFILE and ~/.pgpass.
        url = re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", url).replace(":***@", "@", 1)
        engine["connect_args"] = {
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "application_name": "bruno",
        }
    made = SharedStorage(url, engine_kwargs=engine, **options)
    if url.startswith("postgres"):
        sqlalchemy.event.listen(made.engine, "connect", _limit_idling)
        made.engine.dispose()  # the connection that made the tables
    return made


def _limit_idling(connection: Any, _record: object) -> None:
    """Let the server end a transaction in which nothing was said for a minute: its worker was frozen in the middle of one,
    and the locks that it holds would keep the others from their trials."""
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()


def _sqlite(storage: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    """An SQLite file. It writes ahead and syncs at checkpoints: a trial is some twenty commits, which a killed process
    loses none of this way, and which would take longer than scoring it if each one waited for the disk. `rdb.py` says how
    transactions begin.
    """
    path = storage.removeprefix("sqlite:///")

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return SharedStorage(f"sqlite:///{path}", engine_kwargs={"creator": connect}, **options)
