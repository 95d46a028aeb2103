"""What can go wrong between bruno and a machine, each with one clear line. Imports nothing but the house's errors.

Three kinds must never be confused: *refused* (nothing happened), *gone* (the provider says so), and *unknown* (no answer, or
one that cannot be understood). Unknown is `Unreachable`; no caller may read it as "there is none".
"""

from __future__ import annotations

from bruno.errors import BrunoError, Denied, InputError, RunFailed, Unreachable


class WrongKey(InputError):
    """The provider does not accept the API key."""


class RateLimited(Unreachable):
    """The provider answered 429 for longer than bruno waits, or today's search quota is used up."""


class ProviderRefused(BrunoError):
    """The provider answered with a definite no. Nothing was done."""


class NoCredit(ProviderRefused):
    """The account has no credit for this."""


class OfferGone(ProviderRefused):
    """The offer was taken or withdrawn between the search and the act. Nothing was rented."""


class InstanceGone(BrunoError):
    """The provider says that this instance does not exist."""


class OutcomeUnknown(Unreachable):
    """The request was sent and its reply lost: it may or may not have happened. Reconcile by label or id before anything else."""

    def __init__(
        self, message: str, *, fix: str = "", label: str | None = None, instance_id: int | None = None
    ) -> None:
        super().__init__(message, fix=fix)
        self.label = label
        self.instance_id = instance_id


class RentedButStopped(BrunoError):
    """A failed rental left a stopped instance behind. It bills its disk until it is destroyed."""

    def __init__(self, message: str, *, instance_id: int, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.instance_id = instance_id


class FactsChanged(Denied):
    """What the person confirmed is no longer what the provider shows. Nothing was done."""

    def __init__(self, message: str, *, differences: tuple[str, ...] = (), fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.differences = differences


class NotReady(RunFailed):
    """An instance did not become usable in time, or cannot any more. The message says what it costs meanwhile."""


class HostRefused(Unreachable):
    """SSH to the instance was not possible: refused, silent, or the key is not accepted."""


class HostLost(Unreachable):
    """The SSH link broke or froze during an operation. What was started there may still be running."""


class HostKeyChanged(Denied):
    """The machine that answers has another host key than the one pinned for this instance id."""

    def __init__(self, message: str, *, pinned: str, shown: str, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.pinned = pinned
        self.shown = shown


class WrongHost(Denied):
    """The machine that answers does not carry the label file of this instance."""


class CommandTimedOut(Unreachable):
    """A command on the machine took too long. Without a terminal it is not killed by that: it may still be running."""


class TransferFailed(BrunoError):
    """A file could not be copied whole. What arrived is kept and the copy can be taken up again."""


class DiskFull(TransferFailed):
    """There is no room for the files. What arrived is kept and the copy can be taken up again."""


class Cancelled(BrunoError):
    """The person called it off. What arrived is kept."""


class AlreadyLaunched(BrunoError):
    """The job's lock exists: an engine was launched here before, and a second one beside it is refused."""
