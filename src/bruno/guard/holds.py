"""Holds: a concern that a person raised twice stops new acts until the person says what it was. Pure.

A hold denies every rental and every act on the run it is about. Looking stays possible, and so does stopping: whoever fears that
something is wrong must always be able to end it. Destroying is an act, since it destroys the evidence too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bruno.guard.actions import Action, CreateInstance, Risk, RunPlaybook, StartInstance, StopInstance
from bruno.guard.decision import RuleHit
from bruno.guard.plan import Plan
from bruno.guard.sanitise import safe_line

LIFT = 'Say what it was: "resolved: ..." (or bruno concern resolve). Looking and stopping stay possible'
_ABOUT = {
    "numbers": r"refus|count|number|trial|\bkl\b|score|result|percent|ratio|zero|\b\d+\b",
    "model": r"model|weights|saved|answers|copied|download|home",
    "money": r"cost|price|bill|credit|dollar|\$|expensive|paid|paying",
    "disk": r"disk|space|full|storage",
    "progress": r"stuck|dead|frozen|freez|froze|hung|hang|stall|crash|slow|gone|lost|not running|nothing|stopped|finished|idle"
    r"|died|progress|\bmov|respond|new trial|doing|working",
}
"""Kind of concern -> how it is told. Whatever fits none names nothing in particular and counts as any of them."""
_EVIDENCE = 6


@dataclass(frozen=True)
class Hold:
    """A concern that holds its run.

    Args:
        number: by which it is resolved. words: what was said, first to last.
        evidence: what each source said when it was looked into, a line each.
    """

    number: int
    run_id: str
    instance_id: int | None
    words: tuple[str, ...]
    evidence: tuple[str, ...] = ()

    def reason(self) -> str:
        """Why nothing new is begun, in words."""
        said = " and ".join(dict.fromkeys(f'"{safe_line(each, 120)}"' for each in self.words))
        shown = "; ".join(str(safe_line(line, 160)) for line in self.evidence[:_EVIDENCE])
        more = f"; {len(self.evidence) - _EVIDENCE} more lines: concerns" if len(self.evidence) > _EVIDENCE else ""
        sources = f". The sources say: {shown}{more}" if shown else ""
        return f"you reported {said} about {self.run_id} ({len(self.words)} times) and it is not resolved{sources}"


def about(words: str) -> str:
    """The kind of concern these words tell of; "" when they name nothing, or several things."""
    text = words.casefold()
    found = [kind for kind, pattern in _ABOUT.items() if re.search(pattern, text)]
    return found[0] if len(found) == 1 else ""


def prevents(hold: Hold, action: Action, run_id: str | None) -> bool:
    """Whether `hold` stands against this action of a plan for `run_id`."""
    if action.risk is Risk.READ or isinstance(action, StopInstance):
        return False
    if isinstance(action, CreateInstance | StartInstance | RunPlaybook):
        return True
    target = getattr(action, "target", None)
    instance = target.instance_id if target is not None else getattr(action, "instance_id", None)
    return run_id == hold.run_id or (instance is not None and instance == hold.instance_id)


def judge_holds(plan: Plan, holds: tuple[Hold, ...]) -> Iterator[RuleHit]:
    """One denial for each hold that stands against the plan, with the evidence and how to lift it."""
    for hold in holds:
        if any(prevents(hold, step.action, plan.run_id) for step in plan.steps):
            yield RuleHit.deny("on-hold", hold.reason(), LIFT)
