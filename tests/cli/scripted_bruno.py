"""`python scripted_bruno.py ARGUMENTS`: the command line over a scripted operator, for tests of its prompts on a terminal.

The scenario is the first argument: what the operator answers to every request.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bruno.cli import main, session
from bruno.guard.decision import Decision, Verdict
from bruno.operator.views import Answer, Ask, Card, Happening, InstancesView
from tests.tui import scripted


def fresh(card: Card) -> Card:
    """The same plan, made now, with the decision on it."""
    now = datetime.now(UTC)
    plan = card.plan.model_copy(update={"created_at": now, "expires_at": now + timedelta(minutes=10)})
    decision = Decision(
        verdict=card.decision.verdict, word=card.decision.word, hits=card.decision.hits, plan_id=plan.plan_id
    )
    return card.model_copy(update={"plan": plan, "decision": decision})


class Telling(scripted.ScriptedOperator):
    """Says on stdout what it carried out, so that a test outside the process can see it."""

    def __init__(self, scenario: str) -> None:
        super().__init__()
        start = fresh(scripted.start_card(Verdict.DENY if scenario == "deny" else Verdict.CONFIRM))
        self.replies = {
            "start": {"ask": Ask(clarification=scripted.two_meanings()), "destroy": fresh(scripted.destroy_card())}.get(
                scenario, start
            )
        }
        self.run_views = (scripted.run_view(),)
        self.view = InstancesView(known=True, rows=(scripted.instance_view(),), read_at=scripted.NOW, credit=25.0)
        self.happen = (
            Happening(at=scripted.NOW, text="renting"),
            Happening(at=scripted.NOW, text="hidden", level="quiet"),
        )
        if scenario == "long":
            self.hold.clear()

    def act(self, card: Card, permit: object, **rest: object) -> Answer:
        sys.stdout.write("ACTED\n")
        return super().act(card, permit, **rest)  # type: ignore[arg-type]

    def save_plan(self, card: Card) -> None:
        Path(session.paths().home, "plan.json").write_text(card.model_dump_json())

    def saved_plan(self, plan_id: str) -> Card:
        return Card.model_validate_json(Path(session.paths().home, "plan.json").read_text())


if __name__ == "__main__":
    scenario = sys.argv.pop(1)
    session.open_operator = lambda flags: Telling(scenario)  # type: ignore[assignment, return-value]
    sys.exit(main())
