"""`python -m tests.tui.hostile_console HOME FILE`: the console on a real terminal, every text in it from FILE (JSON, a list).

`FILE` is what logs, labels, errors and models would say. What is submitted is written to HOME/asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bruno.operator.views import Answer, Ask, Happening, InstancesView
from bruno.settings.paths import Paths
from bruno.tui.app import BrunoApp
from tests.tui import scripted


def hostile(home: Path, texts: list[str]) -> scripted.ScriptedOperator:
    """An operator all of whose words come from `texts`."""

    class Hostile(scripted.ScriptedOperator):
        def ask(self, words: str, *, origin: object) -> object:
            with (home / "asked").open("a", encoding="utf-8") as file:
                file.write(json.dumps(words) + "\n")
            return super().ask(words, origin=origin)

        def act(self, *args: object, **rest: object) -> Answer:
            (home / "acted").write_text("acted")
            return super().act(*args, **rest)  # type: ignore[arg-type]

    joined = " ".join(texts)
    card = scripted.start_card()
    plan = card.plan.model_copy(update={"title": joined, "notes": tuple(texts)})
    decision = card.decision.model_copy(update={"plan_id": plan.plan_id})
    meanings = scripted.two_meanings()
    options = tuple(each.model_copy(update={"text": joined, "consequence": joined}) for each in meanings.options)
    operator = Hostile(
        {
            "table": Answer(
                text=joined, rows=(("head", "cell"), *((text, text) for text in texts)), suggestions=tuple(texts)
            ),
            "card": card.model_copy(update={"plan": plan, "decision": decision}),
            "letters": Ask(clarification=meanings.model_copy(update={"question": joined, "options": options})),
        }
    )
    operator.run_views = (
        scripted.run_view(log_tail=tuple(texts), problem=joined, discrepancies=tuple(texts), step=joined, model=joined),
    )
    rows = tuple(
        scripted.instance_view(instance_id=number, label=text, gpu=text, status=text, ssh=text)
        for number, text in enumerate(texts, 1)
    )
    operator.view = InstancesView(known=True, problem=joined, rows=rows, read_at=scripted.NOW, credit=1.0)
    operator.happen = tuple(
        Happening(at=scripted.NOW, text=text, level=level)  # type: ignore[arg-type]
        for text in texts
        for level in ("warn", "output")
    )
    operator.unfinished_views = operator.run_views
    return operator


if __name__ == "__main__":
    home = Path(sys.argv[1])
    said = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    operator = hostile(home, said)
    BrunoApp(
        lambda: operator, paths=Paths(home, home / "config.toml"), poll_seconds=0.3, clock=lambda: scripted.NOW
    ).run()  # type: ignore[arg-type, return-value]
