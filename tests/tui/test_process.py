"""What can only be seen from outside the process: leaving at once, and imports after the first frame."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import asyncio, sys, threading
from pathlib import Path
from bruno.settings.paths import Paths
from bruno.tui.app import BrunoApp
from tests.tui.scripted import NOW, ScriptedOperator
home = Path(sys.argv[1])
def console(operator):
    return BrunoApp(lambda: operator, paths=Paths(home, home / "config.toml"), poll_seconds=0.2)
"""


def run(code: str, home: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_call_that_never_returns_does_not_hold_a_console_that_is_left(tmp_path) -> None:
    done = run(
        """
        class Silent(ScriptedOperator):
            def ask(self, words, *, origin):
                self.asked.append(words)
                threading.Event().wait()
        async def main():
            operator = Silent()
            app = console(operator)
            async with app.run_test() as pilot:
                app.ask("hello")
                while not operator.asked:
                    await pilot.pause(0.01)
                await pilot.press("ctrl+q")
            print("left", app.return_value is not None)
        asyncio.run(main())
        """,
        tmp_path,
    )
    assert done.stdout == "left True\n", done.stderr


def test_the_provider_s_package_can_be_imported_after_the_first_frame(tmp_path) -> None:
    done = run(
        """
        class Importing(ScriptedOperator):
            def preload(self):
                self.early = "vastai" in sys.modules
                import vastai
                self.did = vastai.__name__
        async def main():
            operator = Importing()
            app = console(operator)
            async with app.run_test() as pilot:
                while app.snapshot.instances is None:
                    assert app.return_value is None, app.return_value.error
                    await pilot.pause(0.01)
                print(operator.early, operator.did, file=sys.__stdout__)
        asyncio.run(main())
        """,
        tmp_path,
    )
    assert done.stdout == "False vastai\n", done.stderr


def test_the_console_imports_nothing_heavy(tmp_path) -> None:
    heavy = [
        "torch",
        "transformers",
        "sqlmodel",
        "vastai",
        "anthropic",
        "fabric",
        "paramiko",
        "textual_plotext",
        "pydantic",
    ]
    done = run(f"print([name for name in {heavy!r} if name in sys.modules and name != 'pydantic'])", tmp_path)
    assert done.stdout == "[]\n", done.stderr
    alone = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, bruno.tui.app; print([name for name in {heavy!r} if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert alone.stdout == "[]\n", alone.stderr
