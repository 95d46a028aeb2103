"""A plan in words. Drawn from the plan and the guard's decision alone, so that what is confirmed is what is shown."""

from __future__ import annotations

from bruno.guard.decision import Verdict
from bruno.guard.plan import Cost, Fact
from bruno.guard.sanitise import safe_line
from bruno.operator.views import Card

_MARK = {Verdict.ALLOW: "note", Verdict.CONFIRM: "asks", Verdict.CLARIFY: "asks", Verdict.DENY: "no"}


def lines(card: Card) -> tuple[str, ...]:
    """The card as plain text lines, sanitised. A face may colour them; it adds and leaves out nothing."""
    plan, decision = card.plan, card.decision
    out = [plan.title, f"plan {plan.plan_id[:12]}"]
    if card.proposed_by_assistant:
        out.append("understood by the assistant from your words; check that it is what you meant")
    out += ["", "What will be done"]
    for number, step in enumerate(plan.steps, 1):
        action = step.action
        out.append(f"  {number}. {action.describe()}" + (f" ({step.why})" if step.why else ""))
        out += [f"       $ {call}" for call in action.calls()]
        out.append(f"       undo: {action.inverse or 'none, this cannot be undone'}")
    money = _money(plan.cost)
    if money:
        out += ["", "What it costs", *(f"  {line}" for line in money)]
    if plan.notes:
        out += ["", "What it rests on", *(f"  {note}" for note in plan.notes)]
    facts = [_fact(fact) for fact in plan.facts]
    if facts:
        out += [f"  {line}" for line in facts]
    hits = [hit for hit in decision.hits if hit.verdict is not Verdict.CONFIRM]
    if hits:
        out += ["", "What the guard says"]
        for hit in hits:
            out.append(f"  {_MARK[hit.verdict]}: {hit.reason}" + (f". {hit.fix}" if hit.fix else ""))
    out += ["", _ending(card)]
    return tuple(str(safe_line(line, 400)) if line.strip() == line else _indented(line) for line in out)


def _indented(line: str) -> str:
    depth = len(line) - len(line.lstrip())
    return " " * depth + str(safe_line(line, 400))


def _money(cost: Cost) -> list[str]:
    out = []
    if cost.per_hour is not None:
        out.append(f"${cost.per_hour:.3f}/h, disk included")
    if cost.hours is not None and cost.total is not None:
        out.append(f"about {_hours(cost.hours)}, so about ${cost.total:.2f} in all")
    elif cost.per_hour is not None and cost.stopped_per_day is None:
        out.append("how long it takes is unknown, so the total is unknown")
    if cost.stopped_per_day is not None:
        out.append(f"${cost.stopped_per_day:.2f} per day once it is stopped (its disk), until it is destroyed")
    return out


def _hours(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _fact(fact: Fact) -> str:
    if fact.value is None:
        worded = "unknown"
    elif isinstance(fact.value, bool):
        worded = "yes" if fact.value else "no"
    elif fact.name.endswith("_bytes"):
        worded = f"{float(fact.value) / 1e9:.1f} GB"
    elif isinstance(fact.value, float):
        worded = f"{fact.value:g}"
    else:
        worded = str(fact.value)
    return f"{fact.name.replace('_', ' ')}: {worded} ({fact.source})"


def _ending(card: Card) -> str:
    match card.decision.verdict:
        case Verdict.DENY:
            return "Denied. Nothing was done."
        case Verdict.CONFIRM:
            return f"Type {card.decision.word} to go on; anything else does not."
        case _:
            return "No confirmation is needed."
