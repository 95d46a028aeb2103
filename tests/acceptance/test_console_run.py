"""The whole run through the console (Textual's Pilot): real operator, real sandbox, real engine on the demo model.

`BRUNO_SCREENSHOT=docs/console.svg` keeps the picture that the README shows, taken while trials run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from bruno.cli.session import Flags, console_paths, open_operator
from bruno.tui.app import BrunoApp
from bruno.tui.confirm import ConfirmScreen
from tests.acceptance.conftest import Bruno
from tests.tui.driving import say, talk

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
TRIALS = int(os.environ.get("BRUNO_SCREENSHOT_TRIALS", "2"))
GATE_SECONDS = 0.5


async def _until(pilot: Pilot, condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        await pilot.pause(0.1)
    raise AssertionError(f"never happened: {what}\n{talk(pilot.app)}")  # type: ignore[arg-type]


async def _confirm(pilot: Pilot, word: str) -> None:
    """Type the word on the keys, once the gate is armed."""
    await _until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the confirmation opens")
    await pilot.pause(GATE_SECONDS)
    await pilot.press(*("space" if letter == " " else letter for letter in word), "enter")


async def test_a_run_in_the_console(bruno_with_demo: Bruno, monkeypatch: pytest.MonkeyPatch) -> None:
    bruno = bruno_with_demo
    for key in list(os.environ):
        if key.startswith(("BRUNO_", "VAST_", "ANTHROPIC_")) and not key.startswith("BRUNO_SCREENSHOT"):
            monkeypatch.delenv(key)
    shot = os.environ.get("BRUNO_SCREENSHOT")
    monkeypatch.delenv("BRUNO_SCREENSHOT", raising=False)
    monkeypatch.delenv("BRUNO_SCREENSHOT_TRIALS", raising=False)
    for key, value in bruno.environ.items():
        if key.startswith(("BRUNO_", "HF_", "XDG_")) or key in ("HOME", "NO_PROXY"):
            monkeypatch.setenv(key, value)
    foreign = bruno.control().seed(
        bruno.json("offers", "RTX 4090", "--sandbox")[0]["rows"][0]["offer_id"], label="other"
    )
    flags = Flags(sandbox=True)
    app = BrunoApp(lambda: open_operator(flags), paths=console_paths(sandbox=True), sandbox=True)

    async with app.run_test(size=(132, 40) if shot else (80, 24)) as pilot:
        await _until(pilot, lambda: app.snapshot.instances is not None, "the first reading")

        # A disk that is too small is denied; no confirmation opens.
        await say(pilot, "start qwen32b on an H200 with 100 GB")
        await _until(pilot, lambda: "200 GB" in talk(app), "the arithmetic")
        assert not isinstance(app.screen, ConfirmScreen)

        # The demo: a card, `yes`, trials, a model at home.
        await say(pilot, f"start demo on an H200 with {TRIALS} trials")
        await _confirm(pilot, "yes")
        await _until(
            pilot, lambda: app.snapshot.runs and len(app.snapshot.runs[0].history) >= max(1, TRIALS // 2), "trials"
        )
        if shot:
            await pilot.pause(1)
            app.save_screenshot(filename=Path(shot).name, path=str(Path(shot).parent))
        await _until(pilot, lambda: app.snapshot.runs[0].state.value in ("done", "failed"), "the end of the run")
        run = app.snapshot.runs[0]
        assert (run.state.value, len(run.history) + run.stopped_trials) == ("done", TRIALS), run.problem
        assert run.initial is not None
        assert run.initial[1] == run.history[0].prompts
        assert run.local_model is not None
        assert (Path(run.local_model) / "model.safetensors.index.json").is_file()
        assert set(bruno.instances()) == {foreign, run.instance_id}

        # Words with two meanings ask; the stop names its instance and is seen through.
        await say(pilot, "finish the job")
        await _until(
            pilot, lambda: not isinstance(app.focused, type(app.main)) and len(app.screen_stack) > 1, "the question"
        )
        await pilot.press("escape")
        await _until(pilot, lambda: len(app.screen_stack) == 1, "the question closes")
        await say(pilot, "stop it")
        await _confirm(pilot, "yes")
        await _until(pilot, lambda: "the provider says so" in talk(app), "the stop")
        left = bruno.instances()
        assert left[foreign]["stage"] == "running"
        assert left[run.instance_id or 0]["processes"] == []
