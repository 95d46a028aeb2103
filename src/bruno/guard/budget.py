"""Rules about money and disk, applied before anything is rented or started. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bruno.errors import InputError
from bruno.guard.actions import CreateInstance, StartInstance
from bruno.guard.decision import RuleHit
from bruno.guard.disk import disk_needed
from bruno.guard.plan import Plan
from bruno.guard.rules import Rules


def judge_costs(plan: Plan, rules: Rules, live_instances: int | None, credit: float | None) -> Iterator[RuleHit]:
    """Hits for each step that starts billing: price, budgets, live instances, credit and, for a new machine, disk."""
    renting = [step.action for step in plan.steps if isinstance(step.action, CreateInstance | StartInstance)]
    if not renting:
        return
    if rules.broken:
        yield RuleHit.deny(
            "guardrails-broken",
            f"a guardrail file cannot be used: {'; '.join(rules.problems)}",
            "Mend it or take it away",
        )
        return
    price = _price(plan, renting)
    yield from _price_hits(plan, rules, renting, price)
    yield from _live_hits(rules, live_instances, len(renting))
    yield from _credit_hits(plan, rules, price, credit)
    for action in renting:
        if isinstance(action, CreateInstance):
            yield from _disk_hits(plan, rules, action)


def _price(plan: Plan, renting: list[CreateInstance | StartInstance]) -> float | None:
    """The dearest of what the plan says of its price, $/h, all its instances together; None when one of them is unknown."""
    together = 0.0
    for action in renting:
        fact = plan.fact("dph_total", _about(action) if len(renting) > 1 else "")
        said: list[object] = [action.max_dph] if fact is None else [action.max_dph, fact.value]
        prices = [price for one in said if (price := _number(one)) is not None]
        if len(prices) < len(said) or min(prices) <= 0:
            return None
        together += max(prices)
    stated = _number(plan.cost.per_hour)
    return None if stated is None or stated <= 0 else max(together, stated)


def _about(action: CreateInstance | StartInstance) -> str:
    return action.label if isinstance(action, CreateInstance) else action.target.label


def _price_hits(
    plan: Plan, rules: Rules, renting: list[CreateInstance | StartInstance], price: float | None
) -> Iterator[RuleHit]:
    budgets = rules.budgets
    if price is None:
        what = "; ".join(action.describe() for action in renting)
        yield RuleHit.deny("price-unknown", f"what it costs per hour is unknown: {what}", "Ask for the offers again")
        return
    together = f" for {len(renting)} instances together" if len(renting) > 1 else ""
    if price > budgets.max_dph:
        fix = "Take fewer instances, or cheaper ones" if together else "Choose a cheaper offer"
        yield RuleHit.deny(
            "over-budget", f"${price:.3f}/h{together} is above the ceiling of ${budgets.max_dph:g}/h", fix
        )
    elif price > budgets.warn_dph:
        yield RuleHit.warn("dear", f"${price:.3f}/h{together} is above ${budgets.warn_dph:g}/h")
    total = plan.cost.total
    if total is None or not math.isfinite(total):
        yield RuleHit.warn("total-unknown", "what the whole run will cost is unknown")
    elif total > budgets.max_run:
        yield RuleHit.deny(
            "over-budget",
            f"the run is estimated at ${total:.2f}, above the ceiling of ${budgets.max_run:g}",
            "Use fewer trials",
        )
    elif total > budgets.warn_run:
        yield RuleHit.warn("dear", f"the run is estimated at ${total:.2f}, above ${budgets.warn_run:g}")


def _live_hits(rules: Rules, live: int | None, new: int) -> Iterator[RuleHit]:
    budgets = rules.budgets
    if live is None:
        yield RuleHit.deny(
            "live-unknown",
            "how many instances are running is unknown: the provider's list could not be read",
            "Try again when it can be read; an unread list is not an empty one",
        )
    elif live + new > budgets.max_live:
        more = f" and {new} more are wanted" if new > 1 else ""
        reason = f"{live} instances are running{more}, the most allowed is {budgets.max_live}"
        yield RuleHit.deny("too-many-live", reason, "Take fewer" if new > 1 else "Stop one first")
    elif live + new > budgets.warn_live:
        running = f"{live} {'instance is' if live == 1 else 'instances are'} already running and billed"
        yield RuleHit.warn("already-running", running if live else f"{new} instances would run at once")


def _credit_hits(plan: Plan, rules: Rules, price: float | None, credit: float | None) -> Iterator[RuleHit]:
    if credit is None:
        yield RuleHit.warn("credit-unknown", "the credit left on the account is unknown")
        return
    if price is None:
        return
    hours = rules.budgets.runway_hours
    if plan.cost.hours is not None and math.isfinite(plan.cost.hours):
        hours = max(hours, plan.cost.hours)
    if credit < price * hours:
        reason = f"the credit of ${credit:.2f} lasts {credit / price:.1f} h at ${price:.3f}/h; {hours:.1f} h are needed"
        yield RuleHit.deny("credit-too-low", reason, "Add credit first: at zero the provider stops everything")


def _disk_hits(plan: Plan, rules: Rules, action: CreateInstance) -> Iterator[RuleHit]:
    size, of_class, stated = plan.fact("model_bytes"), plan.fact("model_class"), plan.fact("disk_gb")
    model_bytes = _number(size.value) if size is not None else None
    if model_bytes is None:
        yield RuleHit.deny(
            "model-size-unknown",
            "the size of the model is unknown, so the disk cannot be checked",
            "Give weights_gb for it in config.toml",
        )
        return
    try:
        need = disk_needed(model_bytes, str(of_class.value or "") if of_class else "", rules=rules.disk)
    except InputError as error:
        yield RuleHit.deny("model-size-unknown", error.message, error.fix)
        return
    if stated is not None and stated.value != action.disk_gb:
        yield RuleHit.deny(
            "facts-disagree", f"the plan says {stated.value} GB of disk, the request says {action.disk_gb:g} GB"
        )
    if action.disk_gb < need.minimum_gb:
        reason = f"{action.disk_gb:g} GB of disk is too small: " + "; ".join(need.arithmetic)
        yield RuleHit.deny("disk-too-small", reason, f"Ask for {need.gb:g} GB: a disk cannot be made larger later")
    elif action.disk_gb < need.recommended_gb:
        reason = f"{action.disk_gb:g} GB of disk is enough, {need.recommended_gb:g} GB is recommended for this model"
        yield RuleHit.warn("disk-tight", reason)


def _number(value: object) -> float | None:
    """The value as a number, or None when it is none (unknown, a word, a truth value, not finite)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
