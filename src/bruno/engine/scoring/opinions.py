"""Second opinions on the held-out answers, each its own count beside the detector's and never mixed with it.

Loads the models that `scoring.neural_detection_model` and `scoring.judge` name, one after the other and after the
search, and frees each before the next. A model that cannot be loaded or run is a `Fallback`; the run goes on without
its opinion.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from bruno.engine.data.behaviours import Behaviour
from bruno.engine.events import Counted, Emit, Fallback
from bruno.settings.engine import EngineSettings

Count = Callable[[Sequence[str]], int]
"""How many of the answers (to the held-out prompts, in their order) show the behaviour."""


def second_opinions(
    settings: EngineSettings,
    behaviour: Behaviour,
    prompts: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    emit: Emit,
    *,
    device: torch.device | str = "cpu",
) -> list[Counted]:
    """The counts of every second opinion that was asked for.

    Args:
        prompts: what was asked, N texts.
        before: the untouched model's whole answers, N texts.
        after: the edited model's, N texts.
        emit: hears of an opinion that could not be had.
        device: where the models run.
    """

    def neural() -> Count:
        from bruno.engine.scoring.neural import Entailment

        model = Entailment(settings.scoring.neural_detection_model, device)
        return lambda answers: model.count(answers, behaviour.hypothesis)

    def judge() -> Count:
        from bruno.engine.scoring.judge import Judge

        model = Judge(settings.scoring.judge, device)
        return lambda answers: model.count(prompts, answers, behaviour.question)

    asked = (
        ("zero-shot NLI", settings.scoring.neural_detection_model, "hypothesis", behaviour.hypothesis, neural),
        ("judge", settings.scoring.judge, "question", behaviour.question, judge),
    )
    opinions = []
    for kind, model, field, sentence, load in asked:
        if not model:
            continue
        name = f"{kind} {model}"
        if not sentence:
            emit(_without(name, f"the behaviour {behaviour.name} states no {field}"))
            continue
        counts = _counts(load, before, after)
        if isinstance(counts, str):
            emit(_without(name, counts))
        else:
            opinions.append(Counted(name=name, about=sentence, before=counts[0], after=counts[1], prompts=len(prompts)))
        _free()
    return opinions


def _counts(load: Callable[[], Count], before: Sequence[str], after: Sequence[str]) -> tuple[int, int] | str:
    """Both counts, or why there are none. The model is freed with this function's frame."""
    try:
        count = load()
        return count(before), count(after)
    except Exception as error:  # noqa: BLE001  (somebody else's model: whatever it raises, the run's result stands)
        return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _without(name: str, reason: str) -> Fallback:
    return Fallback(method=f"second opinion by {name}", reason=reason, instead="the behaviour's own detector alone")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
