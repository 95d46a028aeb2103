"""Standing instructions ("don't stop it", "use the H200", "under 3 $/h") as hard rules for later plans. Pure.

An instruction stays until the person takes it back. A word can be kept wrongly, a plan against it cannot: it is denied, with the
person's own words beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bruno.guard.actions import CreateInstance, DestroyInstance, StartInstance, StopInstance, Target
from bruno.guard.decision import RuleHit, Verdict
from bruno.guard.plan import Plan
from bruno.intents import SetConstraint

# Shaped like an id or a label of bruno's: then it surely names one instance and no other.
_LABEL = re.compile(r"\d+|[a-z][a-z0-9]*(?:-[a-z0-9.]+)*-(?=[a-z0-9]*\d)[a-z0-9]+")


def judge_instructions(plan: Plan, constraints: tuple[SetConstraint, ...]) -> Iterator[RuleHit]:
    """A denial for each instruction that a step of the plan goes against."""
    for constraint in constraints:
        said = (_against(constraint, step.action, plan) for step in plan.steps)
        for against in dict.fromkeys(said):  # several instances may break it in the same words
            if against:
                yield RuleHit(
                    rule=f"instruction-{constraint.rule.replace('_', '-')}",
                    verdict=Verdict.DENY,
                    reason=f'you said "{constraint.words}": {against}',
                    fix="Take the instruction back first, if it no longer holds",
                )


def _against(constraint: SetConstraint, action: object, plan: Plan) -> str:
    """How `action` breaks the instruction, in words; empty when it does not."""
    renting = isinstance(action, CreateInstance | StartInstance)
    match constraint.rule:
        case "no_stop":
            # Destroying stops it too.
            stops = isinstance(action, StopInstance | DestroyInstance) and about(constraint, action.target)
            return action.describe() if stops else ""  # pyright: ignore[reportAttributeAccessIssue]
        case "no_destroy":
            return action.describe() if isinstance(action, DestroyInstance) and about(constraint, action.target) else ""
        case "no_new_instances":
            return action.describe() if isinstance(action, CreateInstance) else ""
        case "gpu_only":
            wanted = _squeezed(str(constraint.value or ""))
            if not isinstance(action, CreateInstance) or not wanted:
                return ""
            return "" if wanted in _squeezed(action.gpu) else f"this plan rents {action.gpu}"
        case "max_dph":
            return _above(constraint, max(action.max_dph, plan.cost.per_hour or 0), "/h") if renting else ""  # pyright: ignore
        case "max_total":
            return _above(constraint, plan.cost.total, " in all") if renting else ""


def _above(constraint: SetConstraint, price: float | None, unit: str) -> str:
    ceiling = _money(constraint.value)
    if ceiling is None:
        return f"its amount cannot be read ({constraint.value!r})"
    if price is None:
        return f"what this costs{unit} is unknown"
    return f"this costs ${price:.3f}{unit}, more than ${ceiling:g}" if price > ceiling else ""


def about(constraint: SetConstraint, target: Target) -> bool:
    """Whether the instruction covers this instance. One without a name, or with a name that is no id or label, covers all."""
    named = str(constraint.value or "")
    if not _LABEL.fullmatch(named):
        return True
    return named in (str(target.instance_id), target.label)


def _money(value: str | float | None) -> float | None:
    found = re.search(r"\d+(?:\.\d+)?", str(value)) if value is not None else None
    return float(found[0]) if found else None


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
