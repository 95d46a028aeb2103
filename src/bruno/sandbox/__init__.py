"""The sandbox: an emulated Vast.ai on loopback whose instances are real SSH servers running real bash.

The unmodified `vastai` package talks to it, Fabric connects to its instances, and what is launched there runs. So every
part of bruno that touches a provider or a host can be shown and tested without an account, a key or a GPU.

    info = ensure_running(home)                                    # a detached process, found or started
    vast = VastAI(api_key=info.api_key, server_url=info.url, retry=1)
    SandboxControl(info.url, info.admin_token).order("offline", instance=...)
    stop(home)

In tests, `Sandbox` (an async context manager) or `running_sandbox` (the same in a thread) take a clock of their own.
Commands run as the local user, in a home folder of the instance's, with an environment of the instance's; that keeps
things apart, it is no security boundary. Nothing listens anywhere but on 127.0.0.1.

Importing this room imports neither asyncssh nor aiohttp: they belong to the `sandbox` extra and to the serving process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bruno.sandbox.clock import Clock
from bruno.sandbox.control import SandboxControl
from bruno.sandbox.faults import Fault, FaultKind
from bruno.sandbox.info import SandboxInfo
from bruno.sandbox.launch import SandboxFailed, ensure_running, running, stop
from bruno.sandbox.serve import serve

if TYPE_CHECKING:
    from bruno.sandbox.server import Sandbox
    from bruno.sandbox.thread import running_sandbox

__all__ = [
    "Clock",
    "Fault",
    "FaultKind",
    "Sandbox",
    "SandboxControl",
    "SandboxFailed",
    "SandboxInfo",
    "ensure_running",
    "running",
    "running_sandbox",
    "serve",
    "stop",
]


def __getattr__(name: str) -> Any:
    """`Sandbox` and `running_sandbox`, imported when first asked for."""
    if name == "Sandbox":
        from bruno.sandbox.server import Sandbox

        return Sandbox
    if name == "running_sandbox":
        from bruno.sandbox.thread import running_sandbox

        return running_sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
