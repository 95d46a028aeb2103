"""The sandbox in a thread of the calling process: for tests written in plain synchronous code, as the SDK and Fabric are.

with running_sandbox(tmp_path / "sandbox", clock=Clock.frozen()) as sandbox:
    vast = VastAI(api_key=sandbox.info.api_key, server_url=sandbox.info.url, retry=1)
    sandbox.control.advance(5)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bruno.sandbox.control import SandboxControl
from bruno.sandbox.info import SandboxInfo
from bruno.sandbox.server import Sandbox


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that serves from another thread: how to reach it, and how to steer it."""

    info: SandboxInfo
    control: SandboxControl


@contextmanager
def running_sandbox(folder: Path, **options: Any) -> Iterator[RunningSandbox]:
    """Serve a sandbox from a thread of its own while the block runs; `options` are those of `Sandbox`.

    At the end the instances' processes go on, as they would without the sandbox; `control.shutdown(stop_instances=True)`
    ends them too. Raises whatever the sandbox raised when it started.
    """
    outcome: dict[str, Any] = {}
    up = threading.Event()

    async def serve() -> None:
        try:
            async with Sandbox(folder, **options) as sandbox:
                outcome.update(sandbox=sandbox, loop=asyncio.get_running_loop())
                up.set()
                await sandbox.ended.wait()
        except BaseException as error:
            outcome["error"] = error
            raise
        finally:
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="sandbox", daemon=True)
    thread.start()
    up.wait()
    if "sandbox" not in outcome:
        thread.join()
        raise outcome["error"]
    sandbox: Sandbox = outcome["sandbox"]
    try:
        yield RunningSandbox(sandbox.info, SandboxControl(sandbox.info.url, sandbox.info.admin_token))
    finally:
        with suppress(RuntimeError):  # it has ended already, and its loop is closed
            outcome["loop"].call_soon_threadsafe(sandbox.request_end, "the block is over")
        thread.join()
