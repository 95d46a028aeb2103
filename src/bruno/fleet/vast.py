"""Reading from Vast.ai through the unmodified `vastai` package: offers, instances, account, SSH keys.

`Vast` is the one door: it owns the package's client, the throttle, the retries of reads and the translation of failures. What
spends, stops or deletes is in `acts`, which comes through `Vast.once`: one attempt, never repeated here.

The package's own command line is not used: it exits 0 on every HTTP error and on `success: false`, so nothing can be decided
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from bruno.errors import Unreachable
from bruno.fleet.clocks import Clock, Sleep, real_sleep, utc_now
from bruno.fleet.errors import InstanceGone, WrongKey
from bruno.fleet.models import Account, Instance, Listing, Offer, OfferQuery
from bruno.fleet.package import check_address, checked_key, preload
from bruno.fleet.replies import Busy, NoAnswer, failure
from bruno.fleet.throttle import Throttle

if TYPE_CHECKING:
    from vastai import VastAI

__all__ = ["Vast", "preload"]
Result = TypeVar("Result")
_ATTEMPTS = 4
_LONGEST_PAUSE = 60.0
_MOST_PAGES = 400


class Vast:
    """The provider. One object per process: its throttle and its readings are shared by every view. Thread-safe.

    Args:
        api_key: the account's key; never logged, and redacted from every text from now on.
        server_url: `https://console.vast.ai`, or the sandbox's address.
        timeout: seconds for one attempt of one request.
        clock, sleep: time, replaced in tests.

    Raises:
        WrongKey: the key is empty or no key at all.
        InputError: the address is unusable, or a netrc entry would be sent instead of the key.
    """

    def __init__(
        self, api_key: str, server_url: str, *, timeout: float = 10, clock: Clock = utc_now, sleep: Sleep = real_sleep
    ) -> None:
        self.url = server_url.rstrip("/")
        self.clock = clock
        self.sleep = sleep
        self._timeout = timeout
        self._key = checked_key(api_key)
        check_address(self.url)
        self._throttle = Throttle(clock, sleep)
        self._lock = Lock()
        self._client: Any = None
        self._latest: Listing | None = None

    def offers(self, query: OfferQuery) -> list[Offer]:
        """Matching offers, cheapest first, each at its full price for `query.disk_gb`.

        Raises:
            WrongKey, RateLimited, Unreachable: nothing is known about the market; an empty list means it was read.
        """
        # `storage` is what the price is computed for. Its default of 5 GB would show a price that nobody pays.
        rows = self._read(
            "search",
            "search offers",
            lambda sdk: sdk.search_offers(
                query=_filters(query), order="dph_total", limit=query.limit, storage=query.disk_gb, no_default=True
            ),
        )
        if not isinstance(rows, list):
            raise Unreachable(f"could not search offers: {self.url} sent no list")
        read = (Offer.read(row, disk_gb=query.disk_gb) for row in rows if isinstance(row, Mapping))
        return sorted((o for o in read if o is not None and _fits(o, query)), key=lambda offer: offer.dph_total)

    def instances(self, *, max_age: float = 0) -> Listing:
        """Every instance of the account.

        Args:
            max_age: seconds; a listing read no longer ago is given again, so that several views cost one poll.

        Raises:
            WrongKey: the one failure that waiting cannot mend. Anything else unreadable is `Listing(known=False, problem=...)`.
        """
        with self._lock:
            latest = self._latest
        if (
            latest is not None
            and latest.known
            and timedelta(0) <= self.clock() - latest.read_at < timedelta(seconds=max_age)
        ):
            return latest
        listing = self._list()
        with self._lock:
            self._latest = listing
        return listing

    def instance(self, instance_id: int) -> Instance | None:
        """One instance; None only when the provider says that it is gone.

        Raises:
            WrongKey, RateLimited, Unreachable: unknown, which is not the same as gone.
        """
        doing = f"read instance {instance_id}"
        try:
            # The package's own `show_instance` replaces `duration` by the age and raises TypeError on a null `start_date` or
            # `extra_env`; its client gives the same answer untouched.
            body = self._read(
                "show", doing, lambda sdk: _json(sdk.client.get(f"/instances/{instance_id}/", {"owner": "me"}))
            )
        except InstanceGone:
            return None
        if not isinstance(body, Mapping) or "instances" not in body:
            raise Unreachable(f"could not {doing}: {self.url} sent no instance")
        row = body["instances"]
        if row is None:
            return None
        found = Instance.read(row) if isinstance(row, Mapping) else None
        if found is None or found.id != instance_id:
            raise Unreachable(f"could not {doing}: {self.url} sent another one, or none that can be read")
        return found

    def find_by_label(self, label: str) -> Instance | None:
        """The instance with this label; None when the list was read whole and has none.

        Raises:
            WrongKey: the key is not accepted.
            Unreachable: the list could not be read whole, or two instances carry the label.
        """
        listing = self.instances()
        found = listing.with_label(label)
        if len(found) > 1:
            ids = ", ".join(str(instance.id) for instance in found)
            raise Unreachable(
                f"{len(found)} instances carry the label {label} ({ids})", fix="Decide by id which one is meant"
            )
        if found:
            return found[0]
        if not listing.known:
            raise Unreachable(f"cannot tell whether an instance {label} exists: {listing.problem}", fix="Try again")
        return None

    def account(self) -> Account:
        """Credit and owner. Raises WrongKey, RateLimited, Unreachable."""
        body = self._read("user", "read the account", lambda sdk: sdk.show_user())
        if not isinstance(body, Mapping):
            raise Unreachable(f"could not read the account: {self.url} sent none")
        return Account.read(body, read_at=self.clock())

    def ssh_keys(self) -> tuple[str, ...]:
        """Public keys of the account, as the provider stores them. Raises WrongKey, RateLimited, Unreachable."""
        rows = self._read("ssh", "read the SSH keys", lambda sdk: sdk.show_ssh_keys())
        if not isinstance(rows, list):
            raise Unreachable(f"could not read the SSH keys: {self.url} sent no list")
        live = (row for row in rows if isinstance(row, Mapping) and not row.get("deleted_at"))
        keys = (row.get("public_key") or row.get("key") for row in live)
        return tuple(key for key in keys if isinstance(key, str))

    def once(self, kind: str, doing: str, call: Callable[[VastAI], Result]) -> Result:
        """One throttled attempt of one request, its failure translated. Never repeated: the caller knows what a repetition costs.

        Args:
            kind: a key of `throttle.INTERVALS`, or `search`.
            doing: what it does, as it reads after "could not".
            call: what to do with the package's client.
        """
        import requests

        self._throttle.wait(kind)
        try:
            return call(self._sdk())
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise failure(error, doing=doing, url=self.url) from error

    def _read(self, kind: str, doing: str, call: Callable[[VastAI], Result]) -> Result:
        """`once`, repeated while the provider is busy or silent: reading twice costs nothing."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        attempts = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            retry=retry_if_exception(_worth_repeating),
            wait=lambda state: _pause(state.attempt_number, state.outcome.exception() if state.outcome else None),
            sleep=self.sleep,
            reraise=True,
        )
        return attempts(self.once, kind, doing, call)

    def _sdk(self) -> VastAI:
        """The package's client, made on first use. Its own retries are off (`retry=1`; 0 breaks it): it would repeat a create."""
        with self._lock:
            if self._client is None:
                self._client = preload().VastAI(api_key=self._key, server_url=self.url, retry=1, quiet=True)
                self._client.client.timeout = (
                    self._timeout
                )  # its default of 120 s, tried thrice, blocks for six minutes
            return self._client

    def _list(self) -> Listing:
        """All pages of the v1 list, raw: the package's flat list fails whole when one row has a null `start_date`."""
        rows: dict[int, Instance] = {}
        params: dict[str, Any] = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": 25}
        total: Any = None
        problem = ""
        for _ in range(_MOST_PAGES):
            try:
                page = self._read("list", "list the instances", lambda sdk: sdk.show_instances_v1(dict(params)))
            except WrongKey:
                raise
            except (Unreachable, InstanceGone) as error:
                problem = str(error)
                break
            problem = _take(page, rows)
            if problem:
                break
            total, token = page.get("total_instances"), page.get("next_token")
            if not token:
                break
            if token == params.get("after_token"):
                problem = "the provider's list does not end"
                break
            params["after_token"] = token
        else:
            problem = "the provider's list does not end"
        if not problem and isinstance(total, int) and total > len(rows):
            problem = f"the provider counts {total} instances but listed {len(rows)}"
        return Listing(not problem, tuple(rows.values()), self.clock(), problem)


def _take(page: Any, rows: dict[int, Instance]) -> str:
    """Add a page's instances to `rows`; what is wrong with the page, or nothing."""
    if not isinstance(page, Mapping) or not isinstance(page.get("instances"), list):
        return "the provider sent no list of instances"
    problem = ""
    for row in page["instances"]:
        instance = Instance.read(row) if isinstance(row, Mapping) else None
        if instance is None:
            problem = "the provider's list has a row without an id"
        else:
            rows[instance.id] = instance
    return problem


def _filters(query: OfferQuery) -> dict[str, Any]:
    """The search body. Sent as data, not as the package's query text, which multiplies memory by 1000 behind one's back."""
    filters: dict[str, Any] = {
        "verified": {"eq": True},
        "external": {"eq": False},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "num_gpus": {"eq": query.gpu_count},
        "disk_space": {"gte": query.disk_gb},
        "direct_port_count": {"gte": 1},  # without one there is no direct SSH
    }
    names = [name.replace("_", " ") for name in query.gpu_names]
    if names:
        filters["gpu_name"] = {"in": names}
    limits = (
        ("dph_total", "lte", query.max_dph),
        ("gpu_ram", "gte", None if query.min_gpu_memory_gb is None else query.min_gpu_memory_gb * 1000),  # MB
        ("reliability", "gte", query.min_reliability),
        ("inet_down", "gte", query.min_download_mbps),
        ("duration", "gte", None if query.min_hours is None else query.min_hours * 3600),
        ("id", "eq", query.offer_id),
    )
    filters.update({column: {operator: value} for column, operator, value in limits if value is not None})
    return filters


def _fits(offer: Offer, query: OfferQuery) -> bool:
    """The filters that money hangs on, once more on our side: a search that ignores one would rent the wrong machine."""
    names = {name.replace("_", " ") for name in query.gpu_names}
    return (
        offer.gpu_count == query.gpu_count
        and (not names or offer.gpu in names)
        and (offer.disk_available_gb is None or offer.disk_available_gb >= query.disk_gb)
        and (query.max_dph is None or offer.dph_total <= query.max_dph)
        and (query.offer_id is None or offer.id == query.offer_id)
        and offer.rentable is not False
    )


def _worth_repeating(error: BaseException) -> bool:
    if isinstance(error, Busy):
        return not error.quota and (error.after or 0) <= _LONGEST_PAUSE
    return isinstance(error, NoAnswer)


def _pause(attempt: int, error: BaseException | None) -> float:
    """Seconds before the next attempt: what the provider asks for, else 2, 4, 8, all above its thresholds once added up.

    A quarter of that where no request arrived: there was nothing to limit, and someone without a network waits to hear so.
    """
    if isinstance(error, NoAnswer) and not error.sent:
        return 2.0**attempt / 4
    after = getattr(error, "after", None)
    return float(after) if after else 2.0**attempt


def _json(response: Any) -> Any:
    response.raise_for_status()
    return response.json()
