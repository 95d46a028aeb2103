"""Only the exact word, for the exact plan, in time, makes a permit; and a permit covers nothing else."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from pydantic import ValidationError

from bruno.errors import Denied, NotConfirmed
from bruno.guard.decision import Decision, Verdict
from bruno.guard.judge import judge
from bruno.guard.permit import Origin, Permit, mint
from bruno.guard.plan import Plan
from tests.guard.plans import NOW, RENT_FACTS, STOP_FACTS, context, create, destroy, plan, stop

STOPPING = plan(stop(), facts=STOP_FACTS)
DESTROYING = plan(destroy(), facts=STOP_FACTS)


def minted(shown: Plan, typed: str, origin: Origin = Origin.KEYBOARD) -> Permit:
    return mint(shown, judge(shown, context()), typed, origin=origin, now=NOW)


@pytest.mark.parametrize("typed", ["yes", " yes ", "yes\n"])
def test_the_word(typed: str) -> None:
    minted(STOPPING, typed).require(stop(), now=NOW)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "y",
        "Y",
        "Yes",
        "YES",
        "sure",
        "ok",
        "do it",
        "yes please",
        "yess",
        "yes bruno-demo-7f3a",
        "ye s",
        "уes",
        "true",
        "1",
    ],
)
def test_other_words_do_nothing(typed: str) -> None:
    with pytest.raises(NotConfirmed):
        minted(STOPPING, typed)


@pytest.mark.parametrize(
    "typed", ["yes", "yes bruno-demo-7f3", "bruno-demo-7f3a", "yes BRUNO-demo-7f3a", "yes  bruno-demo-7f3a"]
)
def test_destroying_needs_its_label(typed: str) -> None:
    with pytest.raises(NotConfirmed):
        minted(DESTROYING, typed)
    minted(DESTROYING, "yes bruno-demo-7f3a").require(destroy(), now=NOW)


@pytest.mark.parametrize("origin", [Origin.ASSISTANT, Origin.PLAYBOOK])
def test_no_other_mouth_confirms(origin: Origin) -> None:
    with pytest.raises(Denied):
        minted(STOPPING, "yes", origin)


def test_a_script_repeats_the_whole_plan_id() -> None:
    with pytest.raises(NotConfirmed):
        minted(STOPPING, "yes", Origin.SCRIPT)
    with pytest.raises(NotConfirmed):
        minted(STOPPING, STOPPING.plan_id[:12], Origin.SCRIPT)
    minted(STOPPING, STOPPING.plan_id, Origin.SCRIPT).require(stop(), now=NOW)


def test_a_denied_plan_cannot_be_confirmed() -> None:
    with pytest.raises(Denied):
        minted(plan(create(disk_gb=10.0), facts=RENT_FACTS), "yes")


def test_a_decision_counts_for_its_own_plan_alone() -> None:
    with pytest.raises(Denied):
        mint(DESTROYING, judge(STOPPING, context()), "yes", origin=Origin.KEYBOARD, now=NOW)
    with pytest.raises(Denied):
        mint(STOPPING, Decision(verdict=Verdict.CONFIRM), "yes", origin=Origin.KEYBOARD, now=NOW)


def test_a_permit_covers_its_plan_alone() -> None:
    permit = minted(STOPPING, "yes")
    for action in (destroy(), create(), stop(kills="another text")):
        with pytest.raises(Denied):
            permit.require(action, now=NOW)


def test_a_permit_expires_and_does_not_outlive_a_clock_set_back() -> None:
    permit = minted(STOPPING, "yes")
    permit.require(stop(), now=NOW + timedelta(seconds=59))
    for late in (NOW + timedelta(seconds=60), NOW - timedelta(hours=1)):
        with pytest.raises(Denied):
            permit.require(stop(), now=late)


def test_an_expired_plan_is_not_confirmed() -> None:
    with pytest.raises(NotConfirmed):
        mint(STOPPING, judge(STOPPING, context()), "yes", origin=Origin.KEYBOARD, now=NOW + timedelta(hours=1))


def test_forged_permits() -> None:
    permit = minted(STOPPING, "yes")
    assert permit.seal not in repr(permit)
    for forged in (
        dataclasses.replace(permit, expires_at=NOW + timedelta(days=1)),
        dataclasses.replace(permit, plan=DESTROYING),
        dataclasses.replace(permit, seal="0" * 64),
    ):
        with pytest.raises(Denied):
            forged.require(destroy() if forged.plan is DESTROYING else stop(), now=NOW)


def test_a_changed_plan_has_another_id() -> None:
    assert STOPPING.plan_id
    changed = STOPPING.model_copy(update={"steps": DESTROYING.steps})
    assert changed.plan_id != STOPPING.plan_id
    permit = minted(STOPPING, "yes")
    with pytest.raises(Denied):
        dataclasses.replace(permit, plan=changed).require(destroy(), now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_dph": float("nan")},
        {"max_dph": float("inf")},
        {"max_dph": 0},
        {"disk_gb": -1},
        {"label": ""},
        {"gpu_count": 0},
    ],
)
def test_actions_refuse_numbers_that_compare_wrongly(changes: dict) -> None:
    with pytest.raises(ValidationError):
        create(**changes)


def test_the_shown_call_is_quoted() -> None:
    assert "--label 'a; rm -rf /'" in create(label="a; rm -rf /").calls()[0]
