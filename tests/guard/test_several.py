"""Plans over several instances: budgets see their sum, each target is held against its own facts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bruno.errors import Denied
from bruno.guard.actions import Action, CreateInstance, RunPlaybook, StopInstance, Target
from bruno.guard.decision import Verdict
from bruno.guard.judge import judge
from bruno.guard.permit import KEYBOARD_SECONDS, RENTAL_SECONDS, Origin, mint
from bruno.guard.plan import Cost, Fact, Plan, Step
from bruno.intents import SetConstraint
from tests.guard.plans import NOW, STOP_FACTS, context, create

LABELS = ("bruno-demo-1a2b-1", "bruno-demo-1a2b-2", "bruno-demo-1a2b-3")


def playbook(workers: tuple[str, ...] = LABELS) -> RunPlaybook:
    return RunPlaybook(playbook="workers", steps=("all",), engine_argv=("python",), model="demo", workers=workers)


def rentals(*labels: str, price: float = 3.2) -> list[Action]:
    return [create(label=label, offer_id=number, max_dph=price) for number, label in enumerate(labels)]


def group(actions: list[Action], *, cost: Cost | None = None, facts: tuple[Fact, ...] = ()) -> Plan:
    known = (
        Fact(name="model_bytes", value=65.5e9, source="test"),
        Fact(name="model_class", value="32B", source="test"),
    )
    return Plan(
        title="a group", run_id="bruno-demo-1a2b", steps=tuple(Step(action=each) for each in actions), facts=known + facts,
        cost=cost or Cost(per_hour=9.6, hours=5, total=48), created_at=NOW, expires_at=NOW + timedelta(minutes=10),
    )  # fmt: skip


def denied(plan: Plan, **around: object) -> set[str]:
    return {hit.rule for hit in judge(plan, context(**around)).hits if hit.verdict is Verdict.DENY}


def test_a_run_over_three_instances_is_one_yes() -> None:
    decision = judge(group([*rentals(*LABELS), playbook()]), context())
    assert decision.verdict is Verdict.CONFIRM
    assert decision.word == "yes"


@pytest.mark.parametrize(
    ("actions", "rule"),
    [
        (rentals(*LABELS), "one-rent"),
        ([*rentals(*LABELS), playbook(LABELS[:2])], "one-rent"),
        ([*rentals(*LABELS), playbook(())], "one-rent"),
        ([*rentals(*LABELS), playbook(), playbook(LABELS[:1])], "one-rent"),
        ([*rentals(LABELS[0], LABELS[0]), playbook((LABELS[0], LABELS[0]))], "one-rent"),
        ([*rentals(*LABELS, price=13.5), playbook()], "over-budget"),
    ],
)
def test_what_is_no_such_run_is_denied(actions: list[Action], rule: str) -> None:
    assert rule in denied(group(actions))


def test_each_instance_alone_is_within_the_budget_and_their_sum_is_not() -> None:
    prices = tuple(Fact(name="dph_total", value=13.4, source="provider", about=label) for label in LABELS)
    plan = group(
        [*rentals(*LABELS, price=13.4), playbook()], facts=prices, cost=Cost(per_hour=40.2, hours=1, total=40.2)
    )
    reasons = judge(plan, context(credit=1000.0)).reasons
    assert any("$40.200/h for 3 instances together" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("around", "rule"),
    [({"live_instances": 6}, "too-many-live"), ({"live_instances": None}, "live-unknown"), ({"credit": 47.0}, "credit-too-low")],
)  # fmt: skip
def test_live_instances_and_credit_are_held_against_all_of_them(around: dict, rule: str) -> None:
    plan = group([*rentals(*LABELS), playbook()])
    assert rule in denied(plan, **around)
    assert denied(plan, live_instances=5, credit=48.5) == set()


def test_one_unknown_price_is_no_price() -> None:
    price = Fact(name="dph_total", value=None, source="provider", about=LABELS[1])
    assert denied(group([*rentals(*LABELS), playbook()], facts=(price,))) == {"price-unknown"}


def test_an_instruction_about_money_is_held_against_the_sum_and_said_once() -> None:
    said = SetConstraint(rule="max_dph", value=5, words="under 5 $/h")
    decision = judge(group([*rentals(*LABELS), playbook()]), context(constraints=(said,)))
    assert [hit.reason for hit in decision.hits if hit.verdict is Verdict.DENY] == [
        'you said "under 5 $/h": this costs $9.600/h, more than $5'
    ]


def test_the_permit_lives_longer_for_each_further_rental() -> None:
    plan = group([*rentals(*LABELS), playbook()])
    permit = mint(plan, judge(plan, context()), "yes", origin=Origin.KEYBOARD, now=NOW)
    last = plan.steps[2].action
    assert isinstance(last, CreateInstance)
    permit.require(last, now=NOW + timedelta(seconds=KEYBOARD_SECONDS + 2 * RENTAL_SECONDS - 1))
    with pytest.raises(Denied, match="expired"):
        permit.require(last, now=NOW + timedelta(seconds=KEYBOARD_SECONDS + 2 * RENTAL_SECONDS))


def stops(*numbers: int) -> list[Action]:
    return [
        StopInstance(target=Target(instance_id=n, label=f"bruno-demo-1a2b-{n}", ssh_port=40000 + n)) for n in numbers
    ]


def stop_facts(*numbers: int, **changes: object) -> tuple[Fact, ...]:
    own = {n: {"instance_id": n, "label": f"bruno-demo-1a2b-{n}", "ssh_port": 40000 + n, "provider_ssh_port": 40000 + n,
               "label_file": f"C.{n}"} for n in numbers}  # fmt: skip
    own[numbers[-1]] |= changes
    return tuple(
        Fact.model_validate({"name": name, "value": value, "source": "test", "about": str(n)})
        for n in numbers
        for name, value in {**STOP_FACTS, **own[n]}.items()
    )


def test_a_group_stops_with_one_yes_when_every_instance_is_the_one_meant() -> None:
    decision = judge(group(stops(1, 2, 3), facts=stop_facts(1, 2, 3)), context())
    assert (decision.verdict, decision.word) == (Verdict.CONFIRM, "yes")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"label": "somebody-elses"}, "wrong-target"),
        ({"provider_ssh_port": 1}, "wrong-target"),
        ({"label_file": "C.9"}, "wrong-host"),
        ({"label_file": None}, "host-unknown"),
        ({"instance_id": None}, "target-unknown"),
    ],
)
def test_one_wrong_instance_denies_the_stop_of_the_group(changes: dict, rule: str) -> None:
    plan = group(stops(1, 2, 3), facts=stop_facts(1, 2, 3, **changes))
    assert rule in denied(plan)
    assert "instance 3" in " ".join(judge(plan, context()).reasons)


def test_facts_of_another_instance_never_stand_in() -> None:
    assert "target-unknown" in denied(group(stops(1, 2), facts=stop_facts(1)))
    single = tuple(fact.model_copy(update={"about": ""}) for fact in stop_facts(1))
    assert "target-unknown" in denied(group(stops(1, 2), facts=single))


def test_what_each_would_lose_is_said_of_each() -> None:
    facts = stop_facts(1, 2, model_saved=False)
    warned = [hit.reason for hit in judge(group(stops(1, 2), facts=facts), context()).warnings]
    assert any(reason.startswith("instance 2: no model has been saved") for reason in warned)


def test_an_unreachable_one_asks_for_the_runs_name() -> None:
    facts = stop_facts(1, 2, label_file=None, host_unreachable=True)
    assert judge(group(stops(1, 2), facts=facts), context()).word == "yes bruno-demo-1a2b"
