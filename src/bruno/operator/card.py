"""A plan in words. Drawn from the plan and the guard's decision alone, so that what is confirmed is what is shown.

Most important first: an 80x24 terminal shows the offer, the price, the disk and what is denied without scrolling.
"""

from __future__ import annotations

import textwrap

from bruno.guard.actions import CreateInstance, DestroyInstance, StopInstance
from bruno.guard.decision import Verdict
from bruno.guard.plan import Cost, Fact, Plan
from bruno.guard.sanitise import safe, safe_line
from bruno.operator.views import Card

_LINE = 400


class Verbatim(str):
    """A line that is neither wrapped nor squeezed: every blank of it counts."""

    __slots__ = ()


_HEADLINE = ("gpu_memory_gb", "reliability", "location")
_WORDED = frozenset({*_HEADLINE, "model_bytes", "disk_gb", "dph_total", "model_class"})
"""Facts that stand in a line of their own already."""


def lines(card: Card, width: int = 78) -> tuple[str, ...]:
    """The card as plain text lines, sanitised and wrapped. A face may colour them; it adds and leaves out nothing."""
    plan = card.plan
    out = [plan.title, f"plan {plan.plan_id[:12]}"]
    if card.proposed_by_assistant:
        out.append("Understood by the assistant from your words: check that it is what you meant.")
    out += ["", *_rows(card)]
    out += ["", "What will be done"]
    for number, step in enumerate(plan.steps, 1):
        out.append(f"  {number}. {step.action.describe()}" + (f" ({step.why})" if step.why else ""))
        out += [Verbatim(piece) for piece in _verbatim(step.action.verbatim(), width - 8)]
        out += [f"     $ {call}" for call in step.action.calls()]
        out.append(f"     only if: {'; '.join(step.action.preconditions())}")
        out.append(f"     undo: {step.action.inverse or 'none, this cannot be undone'}")
    out += ["", _ending(card)]
    return tuple(
        piece for line in out for piece in ([str(line)] if isinstance(line, Verbatim) else _wrapped(line, width))
    )


def _verbatim(text: str, width: int) -> list[str]:
    """The text, character by character: `|` begins a line of it, `+` goes on with it; what would not show is its code."""
    pieces = []
    for line in text.split("\n") if text else []:
        shown = "".join(each if _shows(each) else f"\\u{{{ord(each):x}}}" for each in line)
        starts = range(0, max(len(shown), 1), width)
        pieces += [f"     {'+' if start else '|'} {shown[start : start + width]}" for start in starts]
    return pieces


def _shows(character: str) -> bool:
    return character.isprintable() and (character.isascii() or safe(character) == character)


def _rows(card: Card) -> list[str]:
    """Named lines: price, disk, time, facts, and what the guard has to say."""
    plan = card.plan
    rows = [("no", _reason(hit)) for hit in card.decision.hits if hit.verdict is Verdict.DENY]
    offers = _offers(plan)
    rows += [("offer", offer) for offer in offers]
    rows += [("price", line) for line in _money(plan)]
    for note in plan.notes:
        name, colon, rest = note.partition(": ")
        rows.append((name, rest) if colon and len(name) <= 10 else ("", note))
    rest = [_fact(fact) for fact in plan.facts if fact.name not in _WORDED and not (offers and fact.about)]
    if rest:
        rows.append(("facts", "; ".join(rest)))
    rows += [("note", _reason(hit)) for hit in card.decision.hits if hit.verdict is Verdict.ALLOW]
    out, last = [], ""
    for name, text in rows:
        out.append(f"{name if name != last else '':<7} {text}")
        last = name
    return out


def _offers(plan: Plan) -> list[str]:
    """Where and what each machine is, as the provider says; empty for a plan that rents none."""
    rents = [step.action for step in plan.steps if isinstance(step.action, CreateInstance)]
    if len(rents) < 2:
        return [_offer(plan, "")] if plan.fact(_HEADLINE[0]) else []
    return [f"{number}. {_priced(plan, rent)}" for number, rent in enumerate(rents, 1)]


def _priced(plan: Plan, rent: CreateInstance) -> str:
    price = plan.fact("dph_total", rent.label)
    cost = f"${price.value:.3f}/h" if price and isinstance(price.value, float) else "price unknown"
    room = plan.fact("disk_available_gb", rent.label)
    free = f"{room.value:g} GB free" if room and isinstance(room.value, float) else "free disk unknown"
    return f"{cost}, {_offer(plan, rent.label, short=True)}, {free}"


def _offer(plan: Plan, about: str, *, short: bool = False) -> str:
    memory, reliability, place = (plan.fact(name, about) for name in _HEADLINE)
    unit = "GB" if short else "GB of GPU memory"
    said = [f"{memory.value:.0f} {unit}" if memory and isinstance(memory.value, float) else "GPU memory unknown"]
    said.append(f"reliability {reliability.value:.4g}" if reliability and reliability.value else "reliability unknown")
    said.append(str(place.value) if place and place.value else "place unknown")
    return ", ".join(said)


def _reason(hit: object) -> str:
    reason, fix = str(getattr(hit, "reason", "")), str(getattr(hit, "fix", ""))
    return f"{reason}. {fix}." if fix else reason


def _money(plan: Plan) -> list[str]:
    cost: Cost = plan.cost
    out = []
    if cost.per_hour is not None:
        disk = plan.fact("disk_gb")
        rents = sum(isinstance(step.action, CreateInstance) for step in plan.steps)
        together = f" for {rents} instances together" if rents > 1 else ""
        each = " on each" if rents > 1 else ""
        room = f"{disk.value:g} GB of disk{each}" if disk and disk.value else "disk"
        paid = "" if rents else " is being paid now"
        out.append(f"${cost.per_hour:.3f}/h{together}{paid}, {room} included")
    if cost.hours is not None and cost.total is not None:
        out.append(f"about {_hours(cost.hours)}, so about ${cost.total:.2f} in all")
    elif cost.per_hour is not None and plan.fact("disk_gb"):
        out.append("how long it takes is unknown, so the total is unknown")
    if any(isinstance(step.action, DestroyInstance) for step in plan.steps):
        out.append("nothing more once it is destroyed")
    elif cost.stopped_per_day is not None:
        several = sum(isinstance(step.action, CreateInstance | StopInstance) for step in plan.steps) > 1
        once = "they are stopped (their disks), until they are" if several else "it is stopped (its disk), until it is"
        out.append(f"${cost.stopped_per_day:.2f} per day once {once} destroyed")
    return out


def _hours(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def worded(value: object) -> str:
    """A fact's or an evidence's value for a person. 1 and 0 are numbers: trial 1 once read as "trial yes"."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fact(fact: Fact) -> str:
    about = f" of {fact.about}" if fact.about else ""
    return f"{fact.name.replace('_', ' ')}{about} {worded(fact.value)} ({fact.source})"


def _ending(card: Card) -> str:
    match card.decision.verdict:
        case Verdict.DENY:
            return "Denied. Nothing was done."
        case Verdict.CONFIRM:
            return f"Type {card.decision.word} to go on; anything else does not."
        case _:
            return "No confirmation is needed."


def _wrapped(line: str, width: int) -> list[str]:
    """The line, sanitised; longer than `width` it goes on below, under its own text."""
    depth = len(line) - len(line.lstrip())
    text = str(safe_line(line, _LINE * 3))
    if not text:
        return [""]
    words = text.split(" ", 1)[0]
    named = depth == 0 and len(words) <= 7 and line[7:8] == " " and line != text
    hang = 8 if named or (depth == 8) else depth + (3 if text[:1].isdigit() else 2)
    first = f"{words:<7} {text[len(words) :].strip()}" if named else " " * depth + text
    return textwrap.wrap(
        first, max(width, 30), subsequent_indent=" " * hang, break_on_hyphens=False, drop_whitespace=True
    )
