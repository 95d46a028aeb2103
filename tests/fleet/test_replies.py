"""What the provider's answers mean, by words as much as by status."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from bruno.errors import BrunoError, InputError
from bruno.fleet.errors import InstanceGone, NoCredit, OfferGone, ProviderRefused, WrongKey
from bruno.fleet.replies import Busy, NoAnswer, Withdrawn, failure, soft_failure
from bruno.settings.secrets import hide

NO_SUCH_ASK = "error 404/3603: no_such_ask Instance type by id 9 is not available."
HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"


def answered(status: int, body: Any, headers: dict[str, str] | None = None) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response._content = (body if isinstance(body, str) else json.dumps(body)).encode()
    response.headers.update(headers or {})
    return requests.HTTPError(response=response)


CASES = [
    (401, {"success": False, "error": "auth_error", "msg": "Invalid user key"}, WrongKey),
    (404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}, WrongKey),
    (403, "This action requires login.", WrongKey),
    (404, {"success": False, "error": "invalid_args", "msg": NO_SUCH_ASK, "ask_id": 9}, OfferGone),
    (400, {"success": False, "error": "invalid_args", "msg": NO_SUCH_ASK, "ask_id": 9}, OfferGone),
    (
        410,
        {"error": "no_such_ask", "msg": "error 410/3907: no_such_ask Instance type 9 is no longer available."},
        OfferGone,
    ),
    (410, {"success": False, "error": "deprecated_endpoint", "msg": "Use /api/v1/instances/ instead."}, Withdrawn),
    (404, {"success": False, "error": "no_such_instance", "msg": "Instance 12345 not found."}, InstanceGone),
    (404, {"success": False, "msg": "Instance 12345 not found."}, InstanceGone),
    (400, {"success": False, "error": "insufficient_credit", "msg": "Insufficient credits"}, NoCredit),
    (400, {"success": False, "error": "missing_billing", "msg": "add a card"}, NoCredit),
    (400, {"success": False, "error": "spend_rate_limit", "msg": "new account"}, NoCredit),
    (411, {"success": False, "msg": "Insufficient credit"}, NoCredit),
    (402, "payment required", NoCredit),
    (400, {"success": False, "error": "invalid_price", "msg": "price"}, ProviderRefused),
    (429, "API requests too frequent endpoint threshold=4.5", Busy),
    (429, {"detail": "API requests too frequent endpoint threshold=4.5"}, Busy),
    (500, HTML, NoAnswer),
    (502, HTML, NoAnswer),
]


@pytest.mark.parametrize(("status", "body", "kind"), CASES)
def test_an_error_status_becomes_the_right_error(status: int, body: Any, kind: type[BrunoError]) -> None:
    error = failure(answered(status, body), doing="rent offer 9", url="https://x")
    assert type(error) is kind
    assert "\n" not in str(error)
    assert "<html" not in str(error)


def test_a_busy_provider_says_for_how_long() -> None:
    busy = failure(answered(429, "slow down", {"Retry-After": "7"}), doing="read", url="https://x")
    quota = failure(answered(429, {"error": "search_quota_exceeded"}), doing="read", url="https://x")
    assert isinstance(busy, Busy)
    assert isinstance(quota, Busy)
    assert (busy.after, busy.quota) == (7.0, False)
    assert (quota.after, quota.quota) == (None, True)


@pytest.mark.parametrize(
    ("raised", "kind", "sent"),
    [
        (requests.ConnectTimeout(), NoAnswer, False),
        (requests.exceptions.SSLError("bad certificate"), NoAnswer, False),
        (requests.exceptions.ProxyError("no proxy"), NoAnswer, False),
        (requests.ReadTimeout(), NoAnswer, True),
        (requests.ConnectionError("Connection aborted."), NoAnswer, True),
        (ValueError("no JSON"), NoAnswer, True),
        (KeyError("instances"), NoAnswer, True),
        (TypeError("NoneType"), NoAnswer, True),
        (requests.exceptions.InvalidURL("x"), InputError, None),
        (requests.exceptions.InvalidHeader("x"), WrongKey, None),
    ],
)
def test_whether_a_request_may_have_arrived(raised: Exception, kind: type[BrunoError], sent: bool | None) -> None:
    error = failure(raised, doing="rent offer 9", url="https://x")
    assert type(error) is kind
    assert getattr(error, "sent", None) is sent


def test_a_refused_connection_was_never_sent() -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get("http://127.0.0.1:1/", timeout=2)
    error = failure(caught.value, doing="read", url="http://127.0.0.1:1")
    assert isinstance(error, NoAnswer)
    assert not error.sent


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"success": True}, None),
        ({"success": False, "msg": "no"}, ProviderRefused),
        ({"success": False, "error": "no_such_ask"}, OfferGone),
        ({}, NoAnswer),
        (None, NoAnswer),
        ({"success": "yes"}, NoAnswer),
        ([], NoAnswer),
    ],
)
def test_a_200_is_a_success_only_when_it_says_so(body: Any, kind: type[BrunoError] | None) -> None:
    error = soft_failure(body, doing="stop it")
    assert (None if error is None else type(error)) is kind


def test_hostile_words_are_made_fit_for_a_screen_and_secrets_go() -> None:
    hide("key-0123456789")
    body = {"success": False, "msg": "\x1b[2Jbad \u202e key-0123456789\nsecond line " + "x" * 5000}
    text = str(failure(answered(400, body), doing="rent", url="https://x"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\n" not in text
    assert "key-0123456789" not in text
    assert len(text) < 400
