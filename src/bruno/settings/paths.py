"""Where bruno keeps its state. `BRUNO_HOME` moves all of it, which is how tests and second installations stay apart."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from bruno.errors import InputError

if TYPE_CHECKING:
    from bruno.settings.console import Settings


@dataclass(frozen=True)
class Paths:
    """The folders and files of one installation. Nothing is created until `ensure()`."""

    home: Path
    config: Path

    @property
    def database(self) -> Path:
        return self.home / "bruno.sqlite3"

    @property
    def known_hosts(self) -> Path:
        """One pinned host key a file, named after the instance id."""
        return self.home / "known_hosts"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def runs(self) -> Path:
        """One folder a run: the log brought home, events, plan, report."""
        return self.home / "runs"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def sandbox(self) -> Path:
        return self.home / "sandbox"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def log(self) -> Path:
        return self.home / "bruno.log"

    def ensure(self) -> Paths:
        """Create the state folder, readable by its owner alone (it holds keys).

        Raises:
            InputError: there can be no such folder.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(
                f"the state folder {self.home} cannot be made: {error.strerror}",
                fix="Set BRUNO_HOME to a folder that can be written",
            ) from error
        return self


def own_guardrails(settings: Settings, where: Paths | None = None) -> list[Path]:
    """Folders of guardrail files that may only tighten, all in force: the user's, the project's, and the one of the setting.

    The user's lies in the config folder, the project's beside the config file in force. None replaces another, so that a project
    cannot take the user's own rules away.
    """
    folders = [(where or paths()).config.parent / "guardrails"]
    if settings.config_folder is not None:
        folders.append(settings.config_folder / "guardrails")
    if settings.guardrails:
        folders.append(Path(settings.guardrails).expanduser())
    return list(dict.fromkeys(folder.absolute() for folder in folders))


def paths(environ: dict[str, str] | None = None) -> Paths:
    """The folders in force: below `BRUNO_HOME` when it is set, else the platform's user folders."""
    env = os.environ if environ is None else environ
    if env.get("BRUNO_HOME"):
        home = Path(env["BRUNO_HOME"]).expanduser().absolute()
        return Paths(home=home, config=home / "config.toml")
    return Paths(
        home=Path(platformdirs.user_data_dir("bruno", appauthor=False)),
        config=Path(platformdirs.user_config_dir("bruno", appauthor=False)) / "config.toml",
    )
