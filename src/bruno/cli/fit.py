"""`bruno fit MODEL`: what a model needs, from its metadata alone. Rents nothing and downloads no weight."""

from __future__ import annotations

from bruno.cli.session import Flags, settings_in_force
from bruno.cli.show import Output
from bruno.guard.sanitise import safe_line


def show_fit(flags: Flags, model: str, *, gpu: str | None, count: int, per_hour: float | None, as_json: bool) -> int:
    """Print the report as text or as one JSON object.

    Raises:
        InputError: no such model or GPU, gated, or broken files.
        Unreachable: the hub does not answer, and the settings do not know the model.
    """
    from bruno.guard.rules import load_rules
    from bruno.operator.fitting import alias_of, known_model
    from bruno.operator.resolve import find_gpu
    from bruno.runs.fit_report import lines, report
    from bruno.settings.paths import own_guardrails

    settings, output = settings_in_force(flags), Output(as_json=as_json)
    about = alias_of(model, settings)
    known = known_model(about.id if about else model, about.weights_gb if about else None, settings.revision)
    asked = find_gpu(gpu, settings) if gpu else None
    memory = {asked.name: asked.about.memory_gb} if asked else {name: g.memory_gb for name, g in settings.gpus.items()}
    said = report(
        known,
        settings,
        gpus=memory,
        count=count,
        trials=(about.trials if about else 0) or settings.search.trials,
        size_class=about.size_class if about else "",
        hours=about.hours if about else 0,
        per_hour=per_hour,
        rules=load_rules(own_guardrails(settings)).disk,
    )
    if as_json:
        output.json({"kind": "fit", **said.model_dump(mode="json")})
    else:
        for line in lines(said):
            output.line(safe_line(line, 2_000))
    return 0
