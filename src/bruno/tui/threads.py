"""Blocking calls of the service, awaited from the console without tying its end to theirs.

Textual's thread workers run in asyncio's executor, and the process waits for every executor thread when it ends: a provider
that does not answer would hold a console that was told to quit. A daemon thread does not. What such a thread was about to do
stands in the records before it is done, so that it can be cut off like a process that was killed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result], name: str = "bruno-call") -> Result:
    """Call `function` in a daemon thread and wait for it here; its exception is raised here."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not future.done():  # the waiting task may have been cancelled
            set_it()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = _setter(future.set_exception, error)
        else:
            outcome = _setter(future.set_result, result)
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            return  # the console has been left and its loop is closed: nobody waits any more

    threading.Thread(target=call, name=name, daemon=True).start()
    return await future


def _setter(function: Callable[[Result], None], value: Result) -> Callable[[], None]:
    return lambda: function(value)
