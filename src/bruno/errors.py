"""The one family of exceptions. Every failure names itself: what happened, to which thing, and what to do.

A face prints `str(error)` as one line and exits with `error.exit_code`; it never prints a traceback for these.
"""

from __future__ import annotations

import errno


class BrunoError(Exception):
    """A failure the operator can read and act on.

    Args:
        message: what happened and to which thing, in one sentence without a final full stop.
        fix: what to do about it, in one sentence; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}. {self.fix}" if self.fix else self.message


class InputError(BrunoError):
    """Something the person gave cannot be used: an unknown name, a value out of range, a wrong file."""

    exit_code = 2


class Denied(BrunoError):
    """The guard refused: a rule says no, whatever is typed."""

    exit_code = 3


class NotConfirmed(BrunoError):
    """The plan needed a typed confirmation and did not get one. Nothing was done."""

    exit_code = 4


class Unreachable(BrunoError):
    """A provider or a host did not answer, or answered what cannot be understood. Its state is unknown, not empty."""

    exit_code = 5


class RunFailed(BrunoError):
    """A run on a machine ended without its result. What is left running, and what it costs, is in the message."""

    exit_code = 6


class MachineProblem(BrunoError):
    """The operator's own machine is in the way (a full disk, a folder that may not be written): no defect of bruno."""


_FIXES = {
    errno.ENOSPC: "Free some disk space",
    errno.EDQUOT: "Free some of your disk quota",
    errno.EROFS: "Make it writable, or set BRUNO_HOME to a folder that is",
    errno.EACCES: "Check its owner and mode, or set BRUNO_HOME to a folder of yours",
    errno.EPERM: "Check its owner and mode, or set BRUNO_HOME to a folder of yours",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Too many files are open on this machine",
    errno.ENOMEM: "Free some memory",
}


def machine_problem(error: BaseException) -> MachineProblem | None:
    """What an OSError says of this machine, as a failure with a name; None for anything else, which is a defect."""
    if not isinstance(error, OSError) or error.errno not in _FIXES:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return MachineProblem(f"{where}{error.strerror}", fix=_FIXES[error.errno])


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
