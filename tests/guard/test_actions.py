"""Every action states everything a person has to know of it. A new action that leaves something out fails here."""

from __future__ import annotations

from typing import get_args

import pytest

from bruno.guard.actions import (
    Action,
    CreateInstance,
    DestroyInstance,
    RegisterKey,
    Risk,
    RunCommand,
    RunLocal,
    RunPlaybook,
    StartInstance,
    StopInstance,
    _Action,
)
from bruno.guard.plan import Plan
from bruno.operator.card import lines
from bruno.operator.views import Card
from bruno.runs.acting import _ACTIONS, _CALLS
from tests.guard.plans import TARGET, context, create, destroy, plan, start, stop

LINE = {"command": "rm -rf out", "level": "typed_yes", "reasons": ("deletes out",), "seconds": 60}
ALL = [
    (create(), Risk.COSTLY),
    (start(), Risk.COSTLY),
    (stop(kills="the engine at trial 57 of 200; no model saved"), Risk.DESTRUCTIVE),
    (destroy(), Risk.IRREVERSIBLE),
    (RegisterKey(fingerprint="SHA256:abc"), Risk.CHANGE),
    (RunPlaybook(playbook="abliterate", steps=("install", "launch"), engine_argv=("python",), model="demo"), Risk.CHANGE),
    (RunCommand.model_validate({**LINE, "target": TARGET}), Risk.DESTRUCTIVE),
    (RunLocal.model_validate({**LINE, "folder": "/home/me"}), Risk.DESTRUCTIVE),
]  # fmt: skip


def _leaves(cls: type) -> set[type]:
    below = cls.__subclasses__()
    return {cls} if not below else set().union(*(_leaves(each) for each in below))


def test_the_table_has_every_action_and_the_union_too() -> None:
    every = _leaves(_Action)
    assert {type(action) for action, _ in ALL} == every
    assert set(get_args(get_args(Action)[0])) == every


def test_the_one_road_knows_every_action() -> None:
    """What may be begun can be carried out, and read back from the records after a crash."""
    assert set(_ACTIONS.values()) == {type(action) for action, _ in ALL}
    assert set(_ACTIONS) == {action.kind for action, _ in ALL}
    elsewhere = {RunPlaybook, RunCommand, RunLocal}  # the runner's, and the shell's
    assert set(_CALLS) | elsewhere == {type(action) for action, _ in ALL}
    assert {CreateInstance, StartInstance, StopInstance, DestroyInstance, RegisterKey} <= set(_CALLS)


@pytest.mark.parametrize(("action", "risk"), ALL, ids=lambda value: getattr(value, "kind", ""))
def test_it_states_every_field(action: Action, risk: Risk) -> None:
    assert action.risk is risk
    assert all(action.calls())
    assert action.describe()
    assert all(action.preconditions())
    assert action.costs()
    assert action.blast_radius()
    assert bool(action.inverse) is not (risk is Risk.IRREVERSIBLE or isinstance(action, RunCommand | RunLocal))
    for text in (*action.calls(), action.describe(), *action.preconditions(), action.costs()):
        assert "\n" not in text


@pytest.mark.parametrize(("action", "risk"), ALL, ids=lambda value: getattr(value, "kind", ""))
def test_the_card_shows_what_it_states(action: Action, risk: Risk) -> None:
    from bruno.guard.judge import judge

    shown: Plan = plan(action)
    text = " ".join(" ".join(lines(Card(plan=shown, decision=judge(shown, context())))).split())
    for said in (action.describe(), *action.preconditions(), action.inverse or "this cannot be undone"):
        assert " ".join(said.split()) in text


@pytest.mark.parametrize(("action", "figure"), [(create(), "$3.200/h"), (start(), "$3.200/h")])
def test_what_costs_says_how_much(action: Action, figure: str) -> None:
    assert figure in action.costs()
