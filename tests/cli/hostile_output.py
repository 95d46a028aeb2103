"""`python -m tests.cli.hostile_output FILE`: every way the command line shows a text, for every text in FILE (JSON, a list)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bruno.cli.boundary import _fail
from bruno.cli.show import Output
from bruno.operator.views import Answer, Ask, Happening, Instances, InstancesView, Offers, OfferView, Progress
from tests.tui import scripted


def show(text: str, output: Output) -> None:
    """One hostile text through every kind of reply."""
    meanings = scripted.two_meanings()
    options = tuple(each.model_copy(update={"text": text, "consequence": text}) for each in meanings.options)
    card = scripted.start_card()
    plan = card.plan.model_copy(update={"title": text, "notes": (text,)})
    offer = OfferView(
        offer_id=1, gpu=text, gpu_count=1, gpu_memory_gb=1, per_hour=1, disk_gb=1, reliability=1, location=text,
        download_mbps=1,
    )  # fmt: skip
    row = scripted.instance_view(label=text, status=text, gpu=text, ssh=text, intended=text)
    run = scripted.run_view(problem=text, discrepancies=(text,), step=text, model=text, gpu=text, label=text)
    for reply in (
        Answer(text=text, rows=(("head", "cell"), (text, text)), suggestions=(text,)),
        Ask(clarification=meanings.model_copy(update={"question": text, "options": options})),
        card.model_copy(update={"plan": plan}),
        Progress(runs=(run,)),
        Instances(view=InstancesView(known=True, rows=(row,), read_at=scripted.NOW)),
        Instances(view=InstancesView(known=False, problem=text)),
        Offers(rows=(offer,)),
    ):
        output.reply(reply)
    output.run(run)
    for level in ("info", "bad", "output"):
        output.happening(Happening(at=scripted.NOW, text=text, level=level))  # type: ignore[arg-type]
    _fail(text, 1, "again")


if __name__ == "__main__":
    for said in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        show(said, Output())
        show(said, Output(as_json=True))
    Output().line("THE END")
