"""`python -m bruno.sandbox`: the process `launch.ensure_running` starts. People use `bruno sandbox serve`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from bruno.errors import BrunoError
from bruno.sandbox.info import SandboxInfo
from bruno.sandbox.serve import LOOPBACK, serve


def main() -> int:
    """Serve until it ends; 0, or a BrunoError's exit code after one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m bruno.sandbox", description="Serve an emulated Vast.ai on loopback."
    )
    parser.add_argument("--state", type=Path, required=True, help="state folder")
    parser.add_argument("--host", default=LOOPBACK, help="127.0.0.1, and nothing else")
    parser.add_argument("--speed", type=float, help="sandbox seconds per second")
    parser.add_argument("--idle-minutes", type=float, help="end after so long without use")
    parser.add_argument("--rate-limits", action="store_true", help="answer 429 as often as the provider documents")
    parser.add_argument("--ready-fd", type=int, help="file descriptor to write one byte to when it serves")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")

    def ready(_info: SandboxInfo) -> None:
        if given.ready_fd is not None:
            os.write(given.ready_fd, b"1")
            os.close(given.ready_fd)

    try:
        serve(
            given.state,
            host=given.host,
            speed=given.speed,
            idle_minutes=given.idle_minutes,
            rate_limits=given.rate_limits,
            ready=ready,
        )
    except BrunoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
