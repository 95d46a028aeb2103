"""The one way to steer a sandbox from outside it: order faults, move its clock, put instances there, look inside, end it.

    control = SandboxControl(info.url, info.admin_token)
    control.order("reply_lost", operation="create")
    control.advance(3600)

Synchronous, standard library only; it goes to loopback directly, whatever proxies the environment names.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from bruno.errors import InputError, Unreachable
from bruno.sandbox.faults import Fault, FaultKind

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class SandboxControl:
    """The admin side of a running sandbox.

    Args:
        url: its base URL.
        admin_token: its admin token; both are in `SandboxInfo`.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, admin_token: str, *, timeout: float = 20.0) -> None:
        self._url, self._token, self._timeout = url, admin_token, timeout

    def order(self, kind: FaultKind | str, **fields: Any) -> None:
        """Order a fault; `fields` are those of `Fault`. Raises `InputError` if it makes no sense there."""
        fault = Fault(kind=FaultKind(kind), **fields)
        self._ask("POST", "faults", fault.model_dump(mode="json"))

    def clear_faults(self) -> None:
        """Take back every fault that has not struck yet."""
        self._ask("DELETE", "faults")

    def faults(self) -> list[Fault]:
        """The faults still to strike."""
        return [Fault.model_validate(fault) for fault in self._ask("GET", "faults")["faults"]]

    def advance(self, seconds: float) -> float:
        """Move the sandbox's clock by `seconds` and let all that falls due happen. Returns the new sandbox time."""
        return float(self._ask("POST", "clock", {"seconds": seconds})["now"])

    def set_credit(self, dollars: float) -> None:
        """Set the account's credit; at or below zero every instance is stopped."""
        self.order(FaultKind.CREDIT, value=dollars)

    def seed(self, offer: int, *, label: str | None = None, disk: float = 64.0, running: bool = True) -> int:
        """Put an instance there as if somebody else had created it. Returns its id."""
        body = {"offer": offer, "label": label, "disk": disk, "running": running}
        return int(self._ask("POST", "instances", body)["id"])

    def overview(self) -> dict[str, Any]:
        """Credit, clock, and each instance with stage, home folder, SSH connections and process ids."""
        return self._ask("GET", "overview")

    def acts(self) -> list[dict[str, Any]]:
        """Every request since the sandbox was started that may change something: operation, path, body. In order."""
        return list(self._ask("GET", "acts")["acts"])

    def health(self) -> dict[str, Any]:
        """Process id, version and state folder of the serving process."""
        return self._ask("GET", "health")

    def shutdown(self, *, stop_instances: bool = False) -> dict[str, Any]:
        """End the sandbox; with `stop_instances` also every process of every instance. Returns the last overview."""
        return self._ask("POST", "shutdown", {"stop_instances": stop_instances})

    def _ask(self, method: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request.

        Raises:
            Unreachable: nobody answers there, or not a sandbox.
            InputError: the sandbox turned the request down.
        """
        request = urllib.request.Request(  # noqa: S310 the URL is the sandbox's own, on loopback
            f"{self._url}/sandbox/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with _DIRECT.open(request, timeout=self._timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise InputError(f"The sandbox refused {method} {what}: {error.read().decode(errors='replace')}") from error
        except (OSError, ValueError) as error:
            raise Unreachable(f"No sandbox answers at {self._url}: {error}") from error
