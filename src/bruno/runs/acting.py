"""The choke point: the one road to anything that spends, changes, stops or deletes.

Before the call: the permit is used up in the records (once for each action of its plan) and the act is written down. After
it: the outcome. A lost reply leaves the outcome `unknown`, to be settled by asking the provider, never by trying again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bruno.guard.actions import Action
    from bruno.guard.permit import Permit
    from bruno.records import Act
    from bruno.runs.world import World


def perform(action: Action, permit: Permit, world: World, *, run_id: str | None = None) -> dict[str, object]:
    """Carry out one action of a confirmed plan.

    Returns:
        What came of it, as recorded: `{"instance_id": 101}` for CreateInstance; `{"instance_id", "status"}` for StartInstance,
        StopInstance (polled until the provider says stopped) and DestroyInstance (until it says gone); `{}` otherwise.
        RunPlaybook is only recorded here: `Runner.carry_on` carries it out under that record.

    Raises:
        Denied: the permit is not genuine, expired, does not contain the action, or was used before (by whomever).
        FactsChanged: the provider's facts are no longer those of the plan; nothing was done.
        Unreachable: the outcome is unknown and recorded so.
        BrunoError: the provider refused; recorded as failed.
    """
    raise NotImplementedError


def settle(act: Act, world: World) -> Act:
    """Ask the provider what became of an act whose outcome is pending or unknown (by label or instance id), and record it.

    Raises Unreachable when the provider cannot be asked: the outcome stays unknown.
    """
    raise NotImplementedError
