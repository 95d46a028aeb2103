"""Reading from Vast.ai through the unmodified `vastai` package: offers, instances, account, SSH keys (skeleton)."""

from __future__ import annotations

from bruno.fleet.clocks import Clock, Sleep, real_sleep, utc_now
from bruno.fleet.models import Account, Instance, Listing, Offer, OfferQuery


def preload() -> None:
    """Import `vastai` now. Faces call this before `App.run()`: it takes half a second."""


class Vast:
    """The provider. One object per process: its throttle and its readings are shared by every view. Thread-safe."""

    def __init__(
        self, api_key: str, server_url: str, *, timeout: float = 10, clock: Clock = utc_now, sleep: Sleep = real_sleep
    ) -> None: ...

    def offers(self, query: OfferQuery) -> list[Offer]:
        """Matching offers, cheapest first, each at its full price for `query.disk_gb`. Raises WrongKey, RateLimited, Unreachable."""
        raise NotImplementedError

    def instances(self) -> Listing:
        """Every instance of the account. Raises WrongKey only; anything unreadable is `Listing(known=False, problem=...)`."""
        raise NotImplementedError

    def instance(self, instance_id: int) -> Instance | None:
        """One instance; None only when the provider says that it is gone. Raises WrongKey, Unreachable."""
        raise NotImplementedError

    def find_by_label(self, label: str) -> Instance | None:
        """The instance with this label; None when the list was read whole and has none. Raises Unreachable when it was not."""
        raise NotImplementedError

    def account(self) -> Account:
        """Credit. Raises WrongKey, Unreachable."""
        raise NotImplementedError

    def ssh_keys(self) -> tuple[str, ...]:
        """Public keys of the account ("ssh-ed25519 AAAA..."). Raises WrongKey, Unreachable."""
        raise NotImplementedError
