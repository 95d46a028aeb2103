"""The sandbox's own endpoints, below /sandbox: order faults, move the clock, put instances there, look inside, end it.

Guarded by the admin token, which is not the API key: nothing a customer holds can reach them. `control.py` is the client.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from bruno import __version__
from bruno.sandbox.faults import Fault
from bruno.sandbox.http import bearer, read_json, refuse, reply
from bruno.sandbox.world import Refusal

if TYPE_CHECKING:
    from bruno.sandbox.server import Sandbox


class Seed(BaseModel):
    """An instance to put there: on which offer, called what, with how much disk (GB), running or stopped."""

    model_config = ConfigDict(extra="forbid")

    offer: int
    label: str | None = None
    disk: float = 64.0
    running: bool = True


class Advance(BaseModel):
    """How far to move the clock, in sandbox seconds."""

    model_config = ConfigDict(extra="forbid")

    seconds: float


class Admin:
    """The sandbox's endpoints on an aiohttp application."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def mount(self, app: web.Application) -> None:
        """Register every route."""
        app.router.add_get("/sandbox/health", self._health)
        guarded = {
            ("GET", "overview"): self._overview,
            ("GET", "acts"): self._acts,
            ("GET", "faults"): self._list_faults,
            ("POST", "faults"): self._order,
            ("DELETE", "faults"): self._clear_faults,
            ("POST", "clock"): self._advance,
            ("POST", "instances"): self._seed,
            ("POST", "shutdown"): self._shutdown,
        }
        for (method, name), handler in guarded.items():
            app.router.add_route(method, f"/sandbox/{name}", self._guarded(handler))

    def _guarded(self, handler: Any) -> Any:
        async def answer(request: web.Request) -> web.Response:
            self._sandbox.touch()
            token = bearer(request) or ""
            if not secrets.compare_digest(token.encode(), self._sandbox.state.admin_token.encode()):
                return reply({"success": False, "error": "auth_error", "msg": "Invalid admin token"}, 401)
            try:
                return reply(await handler(await read_json(request)))
            except Refusal as refusal:
                return refuse(refusal)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "body"
                return refuse(Refusal(400, "invalid_args", f"{where}: {first['msg']}"))

        return answer

    async def _health(self, _request: web.Request) -> web.Response:
        return reply({"pid": os.getpid(), "version": __version__, "state": str(self._sandbox.folder)})

    async def _overview(self, _body: dict[str, Any]) -> dict[str, Any]:
        return await self._sandbox.overview()

    async def _acts(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"acts": self._sandbox.acts}

    async def _list_faults(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"faults": [fault.model_dump(mode="json") for fault in self._sandbox.state.faults]}

    async def _order(self, body: dict[str, Any]) -> dict[str, Any]:
        await self._sandbox.order(Fault.model_validate(body))
        return {"success": True}

    async def _clear_faults(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._sandbox.world.faults.clear()
        return {"success": True}

    async def _advance(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"now": await self._sandbox.advance(Advance.model_validate(body).seconds)}

    async def _seed(self, body: dict[str, Any]) -> dict[str, Any]:
        seed = Seed.model_validate(body)
        return {"id": await self._sandbox.seed(seed.offer, label=seed.label, disk=seed.disk, running=seed.running)}

    async def _shutdown(self, body: dict[str, Any]) -> dict[str, Any]:
        report = await self._sandbox.overview()
        if body.get("stop_instances"):
            await self._sandbox.kill_everything()
        self._sandbox.request_end("asked to end")
        return report
