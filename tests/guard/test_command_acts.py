"""Shell lines as acts: the word each needs, and a verdict that is taken again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bruno.errors import Denied
from bruno.guard.actions import Risk, RunCommand, RunLocal
from bruno.guard.command import check
from bruno.guard.command_acts import require_command, wipes
from bruno.guard.command_rules import shipped_commands
from bruno.guard.decision import Verdict
from bruno.guard.judge import Context, judge
from bruno.guard.permit import Origin, mint
from bruno.guard.plan import Fact, Plan, Step
from bruno.intents import SetConstraint
from tests.guard.plans import NOW, TARGET

GOOD = {
    "instance_id": TARGET.instance_id,
    "label": TARGET.label,
    "status": "running",
    "ssh_port": TARGET.ssh_port,
    "provider_ssh_port": TARGET.ssh_port,
}


def remote(command: str, **changes: object) -> RunCommand:
    verdict = check(command, git_remote="origin")
    said = {"command": command, "level": verdict.verdict, "reasons": verdict.reasons, "wipes": wipes(verdict)}
    return RunCommand.model_validate({**said, "target": TARGET, "seconds": 60, **changes})


def planned(action: RunCommand | RunLocal, **facts: object) -> Plan:
    listed = tuple(Fact(name=name, value=value, source="provider") for name, value in {**GOOD, **facts}.items())  # type: ignore[arg-type]
    return Plan(
        title="t", steps=(Step(action=action),), facts=listed, created_at=NOW, expires_at=NOW + timedelta(minutes=5)
    )


def decide(plan: Plan):
    return judge(plan, Context(now=NOW, git_remote="origin"))


@pytest.mark.parametrize(
    ("command", "verdict", "word", "risk"),
    [
        ("nvidia-smi", Verdict.ALLOW, "yes", Risk.READ),
        ("df -h | tail -n 3", Verdict.ALLOW, "yes", Risk.READ),
        ("pip install x", Verdict.CONFIRM, "yes", Risk.CHANGE),
        ("blorb --frobnicate", Verdict.CONFIRM, "yes", Risk.CHANGE),
        ("rm -r build", Verdict.CONFIRM, "yes", Risk.DESTRUCTIVE),
        ("pkill python", Verdict.CONFIRM, "yes", Risk.DESTRUCTIVE),
        ("rm -rf /workspace", Verdict.CONFIRM, f"yes {TARGET.label}", Risk.IRREVERSIBLE),
        ("cd /workspace && rm -rf *", Verdict.CONFIRM, f"yes {TARGET.label}", Risk.IRREVERSIBLE),
        ("sudo bash -c 'find . -delete'", Verdict.CONFIRM, f"yes {TARGET.label}", Risk.IRREVERSIBLE),
        ("rm -rf $WORKSPACE", Verdict.CONFIRM, f"yes {TARGET.label}", Risk.IRREVERSIBLE),
        ("rsync -a --delete empty/ /workspace/", Verdict.CONFIRM, f"yes {TARGET.label}", Risk.IRREVERSIBLE),
        ("rm -rf /", Verdict.DENY, "yes", None),
        ("git push elsewhere main", Verdict.DENY, "yes", None),
        ("git push origin main", Verdict.CONFIRM, "yes", Risk.CHANGE),
    ],
)
def test_words(command: str, verdict: Verdict, word: str, risk: Risk | None) -> None:
    plan = planned(remote(command))
    decision = decide(plan)
    assert (decision.verdict, decision.word) == (verdict, word)
    if risk is not None:
        assert plan.risk is risk


@pytest.mark.parametrize(
    "facts",
    [
        {"label": "other"}, {"label": None}, {"instance_id": 7}, {"status": None}, {"status": "stopped"}, {"status": "loading"},
        {"ssh_port": 1}, {"provider_ssh_port": 1}, {"provider_ssh_port": None},
    ],
)  # fmt: skip
def test_even_a_reading_line_needs_the_right_running_instance(facts: dict[str, object]) -> None:
    assert decide(planned(remote("ls"), **facts)).verdict is Verdict.DENY


@pytest.mark.parametrize("level", ["allow", "ask"])
def test_a_verdict_talked_down_is_denied_by_both(level: str) -> None:
    action = remote("rm -rf build", level=level)
    assert "verdict-changed" in {hit.rule for hit in decide(planned(action)).hits}
    with pytest.raises(Denied, match="changed"):
        require_command(action, None, shipped_commands(), "origin", now=NOW)
    quiet = remote("rm -rf /workspace", wipes=False)
    assert decide(planned(quiet)).verdict is Verdict.DENY


def test_the_gate_wants_a_permit_for_exactly_this_line() -> None:
    action, other = remote("rm -r build"), remote("rm -r  build")
    plan = planned(action)
    permit = mint(plan, decide(plan), "yes", origin=Origin.KEYBOARD, now=NOW)
    require_command(action, permit, shipped_commands(), "origin", now=NOW)
    with pytest.raises(Denied, match="does not contain"):
        require_command(other, permit, shipped_commands(), "origin", now=NOW)
    with pytest.raises(Denied, match="confirmation"):
        require_command(action, None, shipped_commands(), "origin", now=NOW)
    require_command(remote("ls"), None, shipped_commands(), "origin", now=NOW)
    with pytest.raises(Denied, match="refuses"):
        require_command(remote("rm -rf /"), permit, shipped_commands(), "origin", now=NOW)


def test_a_line_here_is_judged_the_same() -> None:
    for command, verdict in (("ls", Verdict.ALLOW), ("rm -r x", Verdict.CONFIRM), ("rm -rf /", Verdict.DENY)):
        found = check(command)
        action = RunLocal(command=command, level=found.verdict, reasons=found.reasons, seconds=5, folder="/tmp")  # type: ignore[arg-type]
        assert decide(planned(action)).verdict is verdict


@pytest.mark.parametrize(
    ("rule", "value", "command", "denied"),
    [
        ("no_stop", None, "pkill python", True),
        ("no_stop", None, "sudo shutdown now", True),
        ("no_stop", None, "vastai stop instance 101", True),
        ("no_stop", TARGET.label, "kill 4711", True),
        ("no_stop", "bruno-demo-9", "kill 4711", False),
        ("no_stop", None, "rm -r build", False),
        ("no_stop", None, "nvidia-smi", False),
        ("no_destroy", None, "rm -rf /workspace", True),
        ("no_destroy", None, "vastai destroy instance 101", True),
        ("no_destroy", None, "kill 4711", False),
        ("no_new_instances", None, "vastai create instance 5 --image x", True),
    ],
)
def test_standing_instructions_hold_for_shell_lines(rule: str, value: str | None, command: str, denied: bool) -> None:
    said = SetConstraint.model_validate({"rule": rule, "value": value, "words": "don't"})
    decision = judge(planned(remote(command)), Context(now=NOW, git_remote="origin", constraints=(said,)))
    assert (decision.verdict is Verdict.DENY) is denied
    assert (f"instruction-{rule.replace('_', '-')}" in {hit.rule for hit in decision.hits}) is denied


def local(command: str) -> RunLocal:
    verdict = check(command, git_remote="origin")
    said = {"command": command, "level": verdict.verdict, "reasons": verdict.reasons, "wipes": wipes(verdict)}
    return RunLocal.model_validate({**said, "folder": "/home/me", "seconds": 60})


@pytest.mark.parametrize(
    ("command", "verdict", "word"),
    [
        ("vastai stop instance 5", Verdict.CONFIRM, "yes 5"),
        ("vastai destroy instance 34100201", Verdict.CONFIRM, "yes 34100201"),
        ("vastai stop instances 5 6", Verdict.CONFIRM, "yes 5 6"),
        ("sudo bash -c 'vastai stop instance 5'", Verdict.CONFIRM, "yes 5"),
        ("python -m vastai reboot instance 7", Verdict.CONFIRM, "yes 7"),
        ("vastai destroy instances 5 6", Verdict.DENY, "yes"),
        ("vastai destroy instance 5; vastai destroy instance 6", Verdict.DENY, "yes"),
        ("vastai destroy instance $ID", Verdict.DENY, "yes"),
        ("vastai show instances -q | xargs -n1 vastai destroy instance", Verdict.DENY, "yes"),
        ("for i in $(vastai show instances -q); do vastai stop instance $i; done", Verdict.DENY, "yes"),
        ("vastai stop instance `cat id`", Verdict.DENY, "yes"),
        ("vastai create instance 5 --image x", Verdict.CONFIRM, "yes"),
        ("rm -rf build", Verdict.CONFIRM, "yes"),
    ],
)
def test_a_line_that_stops_past_bruno_names_what_it_stops(command: str, verdict: Verdict, word: str) -> None:
    decision = decide(planned(local(command)))
    assert (decision.verdict, decision.word) == (verdict, word), decision.reasons
    if word not in ("yes",):
        warned = [hit.reason for hit in decision.warnings if hit.rule == "past-bruno"]
        assert warned and "bruno looks which machine it is" in warned[0]
