from __future__ import annotations

from dataclasses import replace

import pytest

from bruno.guard.actions import Action, RegisterKey, Target
from bruno.guard.decision import Verdict
from bruno.guard.judge import judge
from bruno.guard.plan import Cost
from bruno.guard.rules import shipped
from bruno.intents import SetConstraint
from tests.guard.plans import RENT_FACTS, STOP_FACTS, TARGET, context, create, destroy, plan, start, stop

RENT_DENIED = [
    ({"disk_gb": 100.0}, {}, {}, {}, "disk-too-small"),
    ({"disk_gb": 199.0}, {}, {}, {}, "disk-too-small"),
    ({}, {"model_bytes": None}, {}, {}, "model-size-unknown"),
    ({}, {"model_bytes": "big"}, {}, {}, "model-size-unknown"),
    ({}, {"model_class": "33B"}, {}, {}, "model-size-unknown"),
    ({}, {"disk_gb": 150.0}, {}, {}, "facts-disagree"),
    ({}, {"dph_total": None}, {}, {}, "price-unknown"),
    ({}, {}, {"per_hour": None}, {}, "price-unknown"),
    ({}, {"dph_total": 41.0}, {}, {}, "over-budget"),
    ({"max_dph": 41.0}, {}, {}, {}, "over-budget"),
    ({}, {}, {"total": 501.0}, {}, "over-budget"),
    ({}, {}, {}, {"live_instances": None}, "live-unknown"),
    ({}, {}, {}, {"live_instances": 8}, "too-many-live"),
    ({}, {}, {}, {"credit": 1.0}, "credit-too-low"),
    ({}, {}, {"hours": 40.0}, {"credit": 100.0}, "credit-too-low"),
]


@pytest.mark.parametrize(("action", "facts", "cost", "around", "rule"), RENT_DENIED)
def test_renting_is_denied(action: dict, facts: dict, cost: dict, around: dict, rule: str) -> None:
    money = Cost.model_validate({"per_hour": 3.2, "hours": 5, "total": 16} | cost)
    decision = judge(plan(create(**action), facts=RENT_FACTS | facts, cost=money), context(**around))
    assert decision.verdict is Verdict.DENY
    assert rule in [hit.rule for hit in decision.hits if hit.verdict is Verdict.DENY]


def test_disk_denial_shows_the_arithmetic() -> None:
    decision = judge(plan(create(disk_gb=100.0), facts=RENT_FACTS), context())
    reason = next(hit.reason for hit in decision.hits if hit.rule == "disk-too-small")
    assert "100 GB" in reason and "2 x 65.5 GB" in reason and "151 GB" in reason and "200 GB" in reason


def test_renting_asks_and_says_what_is_not_known() -> None:
    decision = judge(plan(create(), facts=RENT_FACTS), context(credit=None, live_instances=1))
    assert decision.verdict is Verdict.CONFIRM and decision.word == "yes"
    assert {"credit-unknown", "already-running"} <= {hit.rule for hit in decision.warnings}


STOP_DENIED = [
    ({"instance_id": None}, "target-unknown"),
    ({"label": None}, "target-unknown"),
    ({"status": None}, "status-unknown"),
    ({"ssh_port": None}, "port-unknown"),
    ({"provider_ssh_port": None}, "port-unknown"),
    ({"label_file": None}, "host-unknown"),
    ({"instance_id": 1002}, "wrong-target"),
    ({"label": "bruno-other-1"}, "wrong-target"),
    ({"ssh_port": 40023}, "wrong-target"),
    ({"provider_ssh_port": 40023}, "wrong-target"),
    ({"label_file": "C.1002"}, "wrong-host"),
    ({"label_file": ""}, "wrong-host"),
    ({"status": "something new", "label_file": None}, "host-unknown"),
    ({"label_file": "C.1002", "host_unreachable": True}, "wrong-host"),
    ({"label_file": None, "host_unreachable": "yes"}, "host-unknown"),
]


@pytest.mark.parametrize("action", [stop(), destroy()])
@pytest.mark.parametrize(("facts", "rule"), STOP_DENIED)
def test_the_wrong_or_unknown_machine_is_never_touched(action: Action, facts: dict, rule: str) -> None:
    decision = judge(plan(action, facts=STOP_FACTS | facts), context())
    assert decision.verdict is Verdict.DENY
    assert rule in [hit.rule for hit in decision.hits if hit.verdict is Verdict.DENY]


def test_missing_facts_count_as_unknown() -> None:
    for name in ("instance_id", "label", "ssh_port", "provider_ssh_port", "label_file", "status"):
        facts = {key: value for key, value in STOP_FACTS.items() if key != name}
        assert judge(plan(stop(), facts=facts), context()).verdict is Verdict.DENY, name


def test_words_that_confirm() -> None:
    assert judge(plan(stop(), facts=STOP_FACTS), context()).word == "yes"
    assert judge(plan(destroy(), facts=STOP_FACTS), context()).word == "yes bruno-demo-7f3a"
    odd = Target(instance_id=1001, label="ünïcode label", ssh_port=40022)
    decision = judge(plan(destroy(target=odd), facts=STOP_FACTS | {"label": odd.label}), context())
    assert (decision.verdict, decision.word) == (Verdict.CONFIRM, "yes 1001")
    assert "cannot be undone" in " ".join(decision.reasons)


def test_a_frozen_machine_can_be_stopped_by_name() -> None:
    decision = judge(plan(stop(), facts=STOP_FACTS | {"label_file": None, "host_unreachable": True}), context())
    assert (decision.verdict, decision.word) == (Verdict.CONFIRM, "yes bruno-demo-7f3a")


def test_a_stopped_machine_has_no_port_and_can_be_destroyed() -> None:
    quiet = Target(instance_id=1001, label="bruno-demo-7f3a")
    facts = STOP_FACTS | {"ssh_port": None, "provider_ssh_port": None, "label_file": None, "status": "exited"}
    assert judge(plan(destroy(target=quiet), facts=facts), context()).verdict is Verdict.CONFIRM


WARNINGS = [
    ({"model_saved": False}, "no-model-saved"),
    ({"model_saved": None}, "saved-unknown"),
    ({"process_running": True, "trial": 57, "trials": 200}, "process-running"),
    ({"process_running": None}, "process-unknown"),
]


@pytest.mark.parametrize(("facts", "rule"), WARNINGS)
def test_losses_are_said(facts: dict, rule: str) -> None:
    decision = judge(plan(stop(), facts=STOP_FACTS | facts), context())
    assert decision.verdict is Verdict.CONFIRM
    assert rule in [hit.rule for hit in decision.warnings]
    if "trial" in facts:
        assert "trial 57 of 200" in " ".join(hit.reason for hit in decision.warnings)


def said(rule: str, value: object = None) -> SetConstraint:
    return SetConstraint.model_validate({"rule": rule, "value": value, "words": f"said {rule}"})


INSTRUCTIONS = [
    (said("no_stop"), stop(), STOP_FACTS, True),
    (said("no_stop"), destroy(), STOP_FACTS, True),
    (said("no_stop", "bruno-demo-7f3a"), stop(), STOP_FACTS, True),
    (said("no_stop", "1001"), stop(), STOP_FACTS, True),
    (said("no_stop", "bruno-other-9c"), stop(), STOP_FACTS, False),
    (said("no_stop", "the qwen run"), stop(), STOP_FACTS, True),
    (said("no_destroy"), destroy(), STOP_FACTS, True),
    (said("no_destroy"), stop(), STOP_FACTS, False),
    (said("no_new_instances"), create(), RENT_FACTS, True),
    (said("gpu_only", "h200"), create(), RENT_FACTS, False),
    (said("gpu_only", "H100"), create(), RENT_FACTS, True),
    (said("gpu_only", "rtx4090"), create(gpu="RTX 4090"), RENT_FACTS, False),
    (said("max_dph", 3.0), create(), RENT_FACTS, True),
    (said("max_dph", "under 3 $/h"), create(), RENT_FACTS, True),
    (said("max_dph", 3.5), create(), RENT_FACTS, False),
    (said("max_dph", "cheap"), create(), RENT_FACTS, True),
    (said("max_total", 10.0), create(), RENT_FACTS, True),
    (said("max_total", 20.0), create(), RENT_FACTS, False),
    (said("max_dph", 3.0), start(), STOP_FACTS, True),
]


@pytest.mark.parametrize(("constraint", "action", "facts", "denied"), INSTRUCTIONS)
def test_an_instruction_is_a_hard_rule(constraint: SetConstraint, action: Action, facts: dict, denied: bool) -> None:
    decision = judge(plan(action, facts=facts), context(constraints=(constraint,)))
    assert (decision.verdict is Verdict.DENY) is denied
    if denied:
        assert constraint.words in " ".join(decision.reasons)


def test_shape_of_the_plan() -> None:
    key = RegisterKey(fingerprint="SHA256:x")
    assert judge(plan(), context()).verdict is Verdict.DENY
    assert judge(plan(key, minutes=0), context()).verdict is Verdict.DENY
    assert judge(plan(key), context()).verdict is Verdict.CONFIRM
    assert judge(plan(destroy(), destroy(), facts=STOP_FACTS), context()).verdict is Verdict.DENY
    assert judge(plan(create(), create(label="b"), facts=RENT_FACTS), context()).verdict is Verdict.DENY


def test_broken_rules_deny_what_costs_but_not_a_stop() -> None:
    broken = replace(shipped(), broken=True, problems=("budgets.toml: line 3",))
    assert judge(plan(create(), facts=RENT_FACTS), context(rules=broken)).verdict is Verdict.DENY
    assert judge(plan(stop(), facts=STOP_FACTS), context(rules=broken)).verdict is Verdict.CONFIRM
    assert TARGET.label
