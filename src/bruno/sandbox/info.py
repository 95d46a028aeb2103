"""How to reach a running sandbox: the port file another process reads. Touches nothing itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class SandboxInfo(BaseModel):
    """A running sandbox, as its port file describes it.

    Args:
        url: base URL of the emulated provider, for `VastAI(server_url=)`.
        api_key: the key its API takes, for `VastAI(api_key=)`.
        admin_token: the token of the fault menu and the clock, for `SandboxControl`.
        pid: the serving process.
        state: its state folder, absolute.
        version: bruno's version in the serving process.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    api_key: str
    admin_token: str
    pid: int
    state: Path
    version: str
