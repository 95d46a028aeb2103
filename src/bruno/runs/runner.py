"""The runner: a confirmed plan carried out step by step from wherever its records leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from bruno.guard.permit import Permit
    from bruno.guard.plan import Plan
    from bruno.records import Run
    from bruno.runs.events import OnEvent
    from bruno.runs.world import World


class Cancel(Protocol):
    """A threading.Event will do. Set: let go at the next safe point; nothing on the machine is ended."""

    def is_set(self) -> bool: ...


class Runner:
    """Carries runs out. One instance a console; `carry_on` blocks, so faces call it from a worker thread."""

    def __init__(self, world: World) -> None:
        self.world = world

    def begin(self, plan: Plan, permit: Permit, *, model: str, settings: dict[str, object], behaviour: str = "") -> str:
        """Use the permit up, write the run and its steps, and return its id. Nothing is rented yet: `carry_on` does.

        Args:
            plan: CreateInstance (or StartInstance) and RunPlaybook steps; RegisterKey first when the key is new. `plan.run_id`
                names the run (the label when it is None).
            permit: minted for exactly this plan.
            model: what is reshaped (hub id or `demo`). settings: the engine's settings (`EngineSettings.model_dump()`),
                which travel to the machine as config.toml.

        Raises: Denied, NotConfirmed.
        """
        raise NotImplementedError

    def carry_on(self, run_id: str, on_event: OnEvent, cancel: Cancel | None = None, *, retry: bool = False) -> Run:
        """Go on with a run until it is finished, it fails, or `cancel` is set; safe to call again after a kill -9 anywhere.

        Args:
            on_event: called in this thread with every RunEvent.
            retry: launch the engine again although it failed or died (its search resumes from its own study).

        Returns: the run's row as it is then (state finished, or active when cancelled).
        Raises: RunFailed naming the step, what is left running and what it costs; Unreachable; FactsChanged; Denied when
            the confirmation was lost before anything was rented.
        """
        raise NotImplementedError

    def fetch(self, run_id: str, on_event: OnEvent, cancel: Cancel | None = None) -> Path:
        """Copy the run's saved model home (resumable) and return its folder. RunFailed when no model was saved."""
        raise NotImplementedError
