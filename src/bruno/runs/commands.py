"""Raw shell lines: the verdict on them with the rules in force now, and running them. Called by `runs.acting` alone to act."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

from bruno.fleet.host import Host, connect
from bruno.fleet.host_keys import HostKeys
from bruno.fleet.keys import key_pair
from bruno.fleet.models import Instance
from bruno.fleet.output import Hear
from bruno.guard.actions import RunCommand, RunLocal
from bruno.settings.paths import own_guardrails

if TYPE_CHECKING:
    from bruno.guard.command import CommandVerdict
    from bruno.guard.command_rules import CommandRules
    from bruno.guard.permit import Permit
    from bruno.guard.plan import Plan
    from bruno.runs.world import World

PATIENCE_SECONDS = 15.0
"""How long a link is tried for. A person waits, and nothing has been sent yet."""


def rules_in_force(world: World) -> CommandRules:
    """The rules for shell lines, read now: a file that was tightened a moment ago counts."""
    from bruno.guard.command_rules import load_command_rules

    return load_command_rules(own_guardrails(world.settings, world.paths))


def rules_for(plan: Plan, world: World) -> CommandRules | None:
    """The rules in force when the plan has a shell line, else None: reading them takes a moment."""
    return rules_in_force(world) if any(step.action.verbatim() for step in plan.steps) else None


def verdict_on(command: str, world: World) -> CommandVerdict:
    """The guard's verdict on a shell line, by the rules and the settings in force."""
    from bruno.guard.command import check

    return check(command, rules_in_force(world), git_remote=world.settings.guard.git_remote)


def run_shell_line(
    action: RunCommand | RunLocal, permit: Permit | None, world: World, *, hear: Hear, cancel: Event
) -> dict[str, Any]:
    """Run it, wait for its end; `{"exit_code", "ended"}`. Raises as `fleet.shell` and `fleet.local` do."""
    rules, remote = rules_in_force(world), world.settings.guard.git_remote
    if isinstance(action, RunLocal):
        from bruno.fleet.local import run_local

        ended = run_local(action, permit, world.clock(), rules=rules, git_remote=remote, hear=hear, cancel=cancel)
        return {"exit_code": ended.exit_code, "ended": ended.how}
    from bruno.fleet.shell import run_command

    def link(instance: Instance) -> Host:
        return connect(
            instance,
            key_pair(world.paths.keys),
            HostKeys(world.paths.known_hosts),
            patience=PATIENCE_SECONDS,
            clock=world.clock,
            sleep=world.sleep,
            cancel=cancel,
        )

    ended = run_command(
        world.vast,
        action,
        permit,
        world.clock(),
        connect=link,
        rules=rules,
        git_remote=remote,
        hear=hear,
        cancel=cancel,
    )
    return {"instance_id": action.target.instance_id, "exit_code": ended.exit_code, "ended": ended.how}
