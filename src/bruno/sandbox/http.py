"""The HTTP side of the sandbox: authorisation, ordered faults and rate limits around `api.py`'s functions.

aiohttp serves it because the `vastai` package brings aiohttp along: a well-kept server at no extra dependency. Answers
carry exactly `Content-Type: application/json`; the real client refuses a charset behind it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from bruno.sandbox import api
from bruno.sandbox.faults import FaultKind
from bruno.sandbox.world import Refusal

if TYPE_CHECKING:
    from bruno.sandbox.server import Sandbox

log = logging.getLogger(__name__)

# The shortest time between two calls of an operation, in sandbox seconds, as the provider documents them.
INTERVALS = {
    "search": 6.0,
    "create": 4.5,
    "list": 1.0,
    "show": 2.0,
    "start": 1.0,
    "stop": 1.0,
    "label": 1.0,
    "destroy": 3.0,
    "reboot": 1.0,
    "bid": 5.5,
    "attach": 2.0,
    "keys": 1.0,
    "charges": 1.0,
    "invoices": 3.0,
}
_TOO_FREQUENT = "API requests too frequent"
_QUOTA_RESET_SECONDS = 3600
_HTML = "<html><head><title>{0} {1}</title></head><body><center><h1>{0} {1}</h1></center><hr>nginx</body></html>"
_LOCAL_HOSTS = {"127.0.0.1", "localhost"}


def reply(data: Any, status: int = 200) -> web.Response:
    """A JSON answer with the content type the real client insists on."""
    return web.Response(body=json.dumps(data).encode(), status=status, content_type="application/json")


def refuse(refusal: Refusal) -> web.Response:
    """The answer a refusal carries."""
    return reply(refusal.body, refusal.status)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The JSON object a request carries; empty if it carries none. Raises `Refusal` 400 for anything else."""
    raw = await request.read()
    try:
        data = json.loads(raw) if raw else {}
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise Refusal(400, "invalid_args", "the body is not a JSON object.")
    return data


def bearer(request: web.Request) -> str | None:
    """The token of the Authorization header, None if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme == "Bearer" else None


@web.middleware
async def local_only(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn away a browser that was led here under another name (DNS rebinding)."""
    if request.host.partition(":")[0] not in _LOCAL_HOSTS:
        return web.Response(status=421, text="This sandbox answers to 127.0.0.1 only.")
    return await handler(request)


class Provider:
    """The provider's endpoints on an aiohttp application."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._last: dict[str, float] = {}
        self._results: dict[str, str] = {}

    def mount(self, app: web.Application) -> None:
        """Register every route."""
        for route in api.ROUTES:
            app.router.add_route(route.method, f"/api{route.path}", self._endpoint(route))
        logs = api.Route("PUT", "/v0/instances/request_logs/{id}/", "logs", self._request_logs)
        app.router.add_route(logs.method, f"/api{logs.path}", self._endpoint(logs))
        app.router.add_get("/results/{token}", self._result)

    def _endpoint(self, route: api.Route) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            self._sandbox.touch()
            try:
                self._authorise(request, route)
                call = api.Call(request.match_info, _decoded(request.query), await read_json(request))
                return await self._answer(request, route, call)
            except Refusal as refusal:
                return refuse(refusal)

        return answer

    def _authorise(self, request: web.Request, route: api.Route) -> None:
        if route.public:
            return
        token = bearer(request)
        if token is None:
            raise Refusal(403, "auth_error", "This action requires login.")
        if not secrets.compare_digest(token.encode(), self._sandbox.state.api_key.encode()):
            raise Refusal(404 if route.billing else 401, "auth_error", "Invalid user key")

    async def _answer(self, request: web.Request, route: api.Route, call: api.Call) -> web.StreamResponse:
        sandbox, operation = self._sandbox, route.named(call.body)
        take = sandbox.world.faults.take
        if hang := take(FaultKind.HANG, operation=operation):
            await asyncio.sleep(hang.number(30))
        if wrong := self._wrong_answer(operation):
            return wrong
        async with sandbox.lock:
            await sandbox.tick_locked()
            if operation not in api.READS:
                sandbox.acts.append({"operation": operation, "path": dict(call.path), "body": dict(call.body)})
            try:
                response = reply(route.handler(sandbox.world, call))
            except (TypeError, ValueError) as error:  # a body no real client sends
                log.warning("%s refused", operation, exc_info=error)
                raise Refusal(400, "invalid_args", f"{type(error).__name__}: {error}") from error
            finally:
                await sandbox.settle_locked(changed=request.method != "GET")
        if take(FaultKind.REPLY_LOST, operation=operation) and request.transport is not None:
            request.transport.abort()
        return response

    def _wrong_answer(self, operation: str) -> web.Response | None:
        """What goes out instead of the answer: an ordered fault, or the rate limit if it is being kept."""
        take = self._sandbox.world.faults.take
        if take(FaultKind.RATE_LIMIT_TEXT, operation=operation):
            return web.Response(text=_TOO_FREQUENT, status=429)
        threshold = INTERVALS.get(operation, 1.0)
        detail = {"detail": f"{_TOO_FREQUENT} endpoint threshold={threshold}"}
        if take(FaultKind.RATE_LIMIT_JSON, operation=operation):
            return reply(detail, 429)
        if take(FaultKind.SEARCH_QUOTA, operation=operation):
            quota = reply(
                {"success": False, "error": "search_quota_exceeded", "msg": "Daily search quota exceeded."}, 429
            )
            quota.headers["X-RateLimit-Reset"] = str(int(time.time()) + _QUOTA_RESET_SECONDS)
            return quota
        if error := take(FaultKind.SERVER_ERROR, operation=operation):
            status = int(error.number(502))
            return web.Response(text=_HTML.format(status, "Bad Gateway"), status=status, content_type="text/html")
        if refused := take(FaultKind.REFUSED, operation=operation):
            return reply({"success": False, "error": "invalid_args", "msg": str(refused.value or "")}, 400)
        if not self._sandbox.rate_limits or operation not in INTERVALS:
            return None
        now = self._sandbox.world.now()
        if now - self._last.get(operation, float("-inf")) < threshold:
            return web.Response(text=f"{_TOO_FREQUENT} endpoint threshold={threshold}", status=429)
        self._last[operation] = now
        return None

    def _request_logs(self, world: Any, call: api.Call) -> dict[str, Any]:
        """The container's log, or with `daemon_logs` the host's: fetched from a result URL, once, without a key."""
        instance = world.instance(call.id)
        lines = int(call.body.get("tail") or 1000)
        if call.body.get("daemon_logs") == "true":
            told = [f"{at:.3f} C.{instance.id} {what}\n" for at, what in instance.events]
            text = "".join(told[-lines:])
        else:
            text = self._sandbox.folder_of(instance.id).tail_container_log(lines)
        if wanted := call.body.get("filter"):
            text = "".join(line for line in text.splitlines(keepends=True) if wanted in line)
        token = secrets.token_urlsafe(24)
        self._results[token] = text
        return {"success": True, "result_url": f"{self._sandbox.url}/results/{token}"}

    async def _result(self, request: web.Request) -> web.Response:
        text = self._results.pop(request.match_info["token"], None)
        if text is None:
            return web.Response(status=404, text="no such result")
        return web.Response(text=text)


def _decoded(query: Any) -> dict[str, Any]:
    """Query values as the client means them: whatever is JSON is sent as JSON."""
    decoded: dict[str, Any] = {}
    for name, text in query.items():
        try:
            decoded[name] = json.loads(text)
        except ValueError:
            decoded[name] = text
    return decoded
