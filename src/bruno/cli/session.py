"""One command's session: which console (real or sandbox), its settings, its operator.

The sandbox console keeps its records, keys and runs in `sandbox-console/` below the state folder: a demo run never stands in
one list with a paid one, and `bruno stop` without `--sandbox` cannot mean an emulated machine. The settings are shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bruno.errors import Denied
from bruno.settings.paths import Paths, paths

if TYPE_CHECKING:
    from bruno.operator.service import Operator
    from bruno.settings.console import Settings


@dataclass(frozen=True)
class Flags:
    """What was said before or after the command's name."""

    sandbox: bool = False
    readonly: bool = False
    config: Path | None = None

    def with_sandbox(self, sandbox: bool) -> Flags:
        return replace(self, sandbox=self.sandbox or sandbox)

    def may_act(self, what: str) -> None:
        """Raise Denied for an acting command under --readonly."""
        if self.readonly:
            raise Denied(f"{what} acts, and --readonly was given", fix="Leave --readonly out")


def console_paths(*, sandbox: bool) -> Paths:
    """Where this console's state lives; the config file is the same for both."""
    real = paths()
    return Paths(home=real.home / "sandbox-console", config=real.config) if sandbox else real


def settings_in_force(flags: Flags) -> Settings:
    from bruno.settings.load import resolve

    return resolve({}, config=flags.config)


def open_operator(flags: Flags) -> Operator:
    """The service behind every command. With `--sandbox` the emulated provider is started first if it does not run.

    Raises:
        InputError: the settings are wrong, or no API key is set for the real provider.
    """
    from bruno.operator.service import Operator

    settings = settings_in_force(flags)
    where = console_paths(sandbox=flags.sandbox).ensure()
    if flags.sandbox:
        from bruno.cli.sandbox import running_sandbox

        info = running_sandbox(settings)
        return Operator.open(settings, paths=where, api_key=info.api_key, url=info.url, sandbox=True)
    from bruno.settings.secrets import secret

    return Operator.open(settings, paths=where, api_key=secret("vast_api_key"))


@contextmanager
def session(flags: Flags) -> Iterator[Operator]:
    """An open operator, closed at the end whatever happens."""
    operator = open_operator(flags)
    try:
        yield operator
    finally:
        operator.close()
