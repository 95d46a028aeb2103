"""What the provider's answers mean: what `requests` raised, or a body that is a soft failure, as one of the room's errors. Pure.

Matched by words as much as by status, because documentation and captures disagree: "no_such_ask" comes with 400, 404 and 410,
a wrong key with 401, 403 and (from billing) 404, and what a rental without credit answers is not published at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bruno.errors import BrunoError, InputError, Unreachable
from bruno.fleet.errors import InstanceGone, NoCredit, OfferGone, ProviderRefused, RateLimited, WrongKey
from bruno.guard.sanitise import SafeText, safe_line
from bruno.settings.secrets import redact

if TYPE_CHECKING:
    import requests

_NO_CREDIT = re.compile(
    r"insufficient[ _]credit|missing_billing|spend_rate_limit|no[ _]credit|negative balance", re.IGNORECASE
)
_WRONG_KEY = re.compile(r"auth_error|invalid user key|requires login|invalid api[ _]key", re.IGNORECASE)
_NO_INSTANCE = re.compile(r"no_such_instance|instance \d+ not found", re.IGNORECASE)
_KEY_FIX = "Check VAST_API_KEY (console.vast.ai, Account, API keys)"


class NoAnswer(Unreachable):
    """No answer that can be understood. `sent` False: the request surely never arrived, so nothing was done."""

    def __init__(self, message: str, *, fix: str = "", sent: bool = True) -> None:
        super().__init__(message, fix=fix)
        self.sent = sent


class Withdrawn(Unreachable):
    """The provider no longer offers this interface. Asking again is no use, and it says nothing about what exists."""


class Busy(RateLimited):
    """429. `after` is how long the provider asks to wait, None when it does not say."""

    def __init__(self, message: str, *, fix: str = "", after: float | None = None, quota: bool = False) -> None:
        super().__init__(message, fix=fix)
        self.after = after
        self.quota = quota


def failure(error: Exception, *, doing: str, url: str) -> BrunoError:
    """The room's error for what the package raised while `doing` something ("read the instances").

    Args:
        error: from `requests`, or a ValueError, KeyError or TypeError of the package over a body it did not expect.
        doing: what was attempted, as it reads after "could not".
        url: the provider's address, for the message.
    """
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _from_status(error.response, doing=doing, url=url)
    if isinstance(error, requests.exceptions.InvalidHeader):
        return WrongKey("the API key contains characters that no key has", fix=_KEY_FIX)
    if isinstance(
        error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema | requests.exceptions.InvalidSchema
    ):
        return InputError(f"{url} is not a usable provider address", fix="Set fleet.url to an http or https address")
    if isinstance(error, requests.Timeout) and not isinstance(error, requests.ConnectTimeout):
        return NoAnswer(
            f"could not {doing}: {url} did not answer in time", fix="Try again; its state is unknown, not empty"
        )
    if isinstance(error, requests.ConnectionError):
        never_sent = isinstance(
            error, requests.ConnectTimeout | requests.exceptions.ProxyError | requests.exceptions.SSLError
        )
        if never_sent or _has_cause(error, "NewConnectionError", "NameResolutionError"):
            return NoAnswer(f"could not {doing}: no connection to {url}", fix="Check the network", sent=False)
        return NoAnswer(f"could not {doing}: the connection to {url} broke before an answer came", fix="Try again")
    return NoAnswer(f"could not {doing}: {url} answered something that cannot be understood ({type(error).__name__})")


def soft_failure(body: Any, *, doing: str) -> BrunoError | None:
    """The error of a 200 whose body says `success: false`, None for a true success. A body that says neither is no success."""
    if isinstance(body, Mapping) and body.get("success") is True:
        return None
    if isinstance(body, Mapping) and body.get("success") is False:
        return _from_words(_words(body), doing=doing)
    return NoAnswer(f"could not {doing}: the provider's answer says neither success nor failure")


def _from_status(response: requests.Response, *, doing: str, url: str) -> BrunoError:
    status, words = response.status_code, _words(_body(response))
    if status in {401, 403} or _WRONG_KEY.search(words):
        return WrongKey(f"{url} does not accept the API key", fix=_KEY_FIX)
    if status == 429:
        quota = "search_quota_exceeded" in words
        fix = "The quota starts again at midnight UTC" if quota else "Wait a minute and try again"
        return Busy(
            f"could not {doing}: the provider limits requests", fix=fix, after=_retry_after(response), quota=quota
        )
    if status >= 500:
        return NoAnswer(f"could not {doing}: {url} has trouble of its own (HTTP {status})", fix="Try again in a minute")
    if "deprecated_endpoint" in words:
        return Withdrawn(f"could not {doing}: the provider has withdrawn this interface", fix="Update bruno")
    return _from_words(words, doing=doing, status=status)


def _from_words(words: str, *, doing: str, status: int | None = None) -> BrunoError:
    shown = shown_words(words) or (f"HTTP {status}" if status else "no reason given")
    if "no_such_ask" in words:
        return OfferGone(
            f"could not {doing}: the offer is no longer there ({shown})", fix="Ask again for today's offers"
        )
    if _NO_CREDIT.search(words) or status == 402:
        return NoCredit(
            f"could not {doing}: the account has no credit for it ({shown})",
            fix="Add credit at console.vast.ai, Billing",
        )
    if _NO_INSTANCE.search(words):
        return InstanceGone(f"could not {doing}: the provider has no such instance ({shown})")
    return ProviderRefused(f"could not {doing}: the provider refused ({shown})")


def shown_words(words: str) -> SafeText:
    """A provider's text, fit for a message: secrets out, controls out, one line."""
    return safe_line(redact(words), 200)


def _body(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:  # text/plain 429, HTML 5xx
        return response.text[:2000]


def _words(body: Any) -> str:
    """The telling parts of a body, in one line: `error`, `msg` and `detail` of an object, else the text itself."""
    if isinstance(body, Mapping):
        parts = [str(body[key]) for key in ("error", "msg", "detail") if body.get(key)]
        return ": ".join(parts) if parts else json.dumps(dict(body), default=str)[:400]
    return "" if "<html" in str(body).lower() else str(body)


def _retry_after(response: requests.Response) -> float | None:
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None


def _has_cause(error: BaseException, *names: str) -> bool:
    """Whether one of these urllib3 errors is at the bottom of a requests error (they are nested in arguments, not chained)."""
    pending: list[Any] = [error]
    while pending:
        current = pending.pop()
        if type(current).__name__ in names:
            return True
        if isinstance(current, BaseException):
            pending += [*current.args, getattr(current, "reason", None), current.__cause__]
    return False
