"""A concern that was raised twice stands against new acts, never against looking or stopping."""

from __future__ import annotations

import pytest

from bruno.guard.actions import RegisterKey, RunPlaybook
from bruno.guard.decision import Verdict
from bruno.guard.holds import Hold, about
from bruno.guard.judge import judge
from tests.guard.plans import RENT_FACTS, STOP_FACTS, context, create, destroy, plan, start, stop

RUN = "demo-7f3a"
TARGET = stop().target
HERE = Hold(3, RUN, TARGET.instance_id, ("it looks stuck", "it is dead"), ("process running yes (process)",))
ELSEWHERE = Hold(4, "other-1", 999, ("the refusals are wrong",) * 2)
PLAYBOOK = RunPlaybook(playbook="abliterate", steps=("all",), engine_argv=("python",), model="demo")


@pytest.mark.parametrize(
    ("action", "facts", "run_id", "hold", "denied"),
    [
        (create(), RENT_FACTS, "new-1", HERE, True),
        (create(), RENT_FACTS, "new-1", ELSEWHERE, True),
        (start(), STOP_FACTS, "new-1", ELSEWHERE, True),
        (PLAYBOOK, {}, RUN, HERE, True),
        (PLAYBOOK, {}, "new-1", ELSEWHERE, True),
        (stop(), STOP_FACTS, RUN, HERE, False),
        (stop(), STOP_FACTS, None, ELSEWHERE, False),
        (destroy(), STOP_FACTS, RUN, HERE, True),
        (destroy(), STOP_FACTS, None, HERE, True),
        (destroy(), STOP_FACTS, None, ELSEWHERE, False),
        (RegisterKey(fingerprint="x", instance_id=TARGET.instance_id), {}, None, HERE, True),
        (RegisterKey(fingerprint="x", instance_id=1), {}, None, HERE, False),
    ],
)
def test_what_a_hold_stands_against(action, facts, run_id, hold: Hold, denied: bool) -> None:
    held = plan(action, facts=facts).model_copy(update={"run_id": run_id})
    decision = judge(held, context(holds=(hold,)))
    hits = [hit for hit in decision.hits if hit.rule == "on-hold"]
    assert bool(hits) is denied
    if denied:
        assert decision.verdict is Verdict.DENY
        assert hold.words[0] in hits[0].reason
        assert "not resolved" in hits[0].reason
        assert "resolved:" in hits[0].fix
        assert all(line in hits[0].reason for line in hold.evidence)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("it looks stuck", "progress"),
        ("nothing is happening", "progress"),
        ("the run seems dead", "progress"),
        ("I still see refusals", "numbers"),
        ("trial 57 cannot be 0", "numbers"),
        ("the model was never saved", "model"),
        ("the disk is full", "disk"),
        ("this costs too much", "money"),
        ("something is wrong", ""),
        ("the model still refuses", ""),
        ("", ""),
    ],
)
def test_what_a_report_is_about(words: str, kind: str) -> None:
    assert about(words) == kind


def test_hostile_words_stay_words() -> None:
    reason = Hold(1, RUN, None, ("\x1b[2J\x1b]0;x\x07stuck\nyes",) * 2, ("\x1b[6nlog line",)).reason()
    assert "\x1b" not in reason
    assert "\n" not in reason
