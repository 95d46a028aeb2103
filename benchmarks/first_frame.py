"""Seconds from starting `bruno --sandbox` to its first frame on a pseudo-terminal, and what `bruno --help` imports and takes.

    python benchmarks/first_frame.py [--runs 7]

Prints one JSON line. The console is told to quit as soon as it has drawn; BRUNO_HOME is a fresh folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import pexpect

CONSOLE = [sys.executable, "-c", "import sys; from bruno.cli import main; sys.exit(main(sys.argv[1:]))"]
DRAWN = "hat do you want"  # its first letter stands under the cursor, in a colour of its own
HEAVY = ("textual", "torch", "sqlmodel", "vastai", "anthropic", "pydantic", "rich", "fabric")


def first_frame(home: str) -> tuple[float, float]:
    """Seconds to the first frame, and from ctrl+q to the end of the process."""
    environment = {**os.environ, "BRUNO_HOME": home, "TERM": "xterm-256color"}
    begun = time.perf_counter()
    child = pexpect.spawn(
        CONSOLE[0], [*CONSOLE[1:], "--sandbox"], env=environment, dimensions=(50, 160), timeout=60, encoding="utf-8"
    )
    child.expect_exact(DRAWN)
    drawn = time.perf_counter() - begun
    asked = time.perf_counter()
    child.send("\x11")
    child.expect(pexpect.EOF)
    child.close()
    return drawn, time.perf_counter() - asked


def timed(arguments: list[str], home: str) -> float:
    begun = time.perf_counter()
    subprocess.run([*CONSOLE, *arguments], env={**os.environ, "BRUNO_HOME": home}, capture_output=True, check=True)
    return time.perf_counter() - begun


def imported_by_help(home: str) -> list[str]:
    """Which of the heavy packages `bruno --help` imports."""
    code = (
        "import json, sys; from bruno.cli import main; main(['--help']); "
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BRUNO_HOME": home}, capture_output=True, check=True, text=True
    )
    return json.loads(done.stderr.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as home:
        frames, leavings = zip(*(first_frame(home) for _ in range(runs)), strict=True)
        help_seconds = [timed(["--help"], home) for _ in range(runs)]
        version_seconds = [timed(["--version"], home) for _ in range(runs)]
        heavy = imported_by_help(home)
        subprocess.run(
            [*CONSOLE, "sandbox", "stop"], env={**os.environ, "BRUNO_HOME": home}, capture_output=True, check=False
        )
    print(
        json.dumps(
            {
                "first_frame_s": {"median": statistics.median(frames), "max": max(frames), "first": frames[0]},
                "quit_s": {"median": statistics.median(leavings), "max": max(leavings)},
                "help_s": statistics.median(help_seconds),
                "version_s": statistics.median(version_seconds),
                "heavy_imports_of_help": heavy,
                "runs": runs,
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
