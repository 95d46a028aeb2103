"""The report on prompts that neither the directions nor the search have seen: what the run's claims rest on.

Runs the model through a `Scorer`; whatever is counted is counted before and after the edit, on whole answers, and stays
a raw count. Emits nothing but fallbacks of second opinions.
"""

from __future__ import annotations

from bruno.engine.data.behaviours import Behaviour
from bruno.engine.data.prompts import PromptSets
from bruno.engine.edits.build import TrialEdit
from bruno.engine.events import Counted, Emit, HeldOut
from bruno.engine.scoring.opinions import second_opinions
from bruno.engine.scoring.scores import Scorer, wilson_interval


def held_out_report(scorer: Scorer, edit: TrialEdit, behaviour: Behaviour, prompts: PromptSets, emit: Emit) -> HeldOut:
    """Score one edit on the held-out and evaluation prompts.

    Args:
        scorer: made on the held-out prompts of both sides, its session open.
        edit: the chosen trial's.
        behaviour: whose evaluation sets, hypothesis and question are used.
        prompts: the run's.
        emit: hears of second opinions that could not be had.
    """
    before, after = scorer.answers(None), scorer.answers(edit)
    scores = scorer.score([edit])[0]
    ordinary = scorer.ordinary(edit)
    evaluations = []
    for name, texts in prompts.held_out_evaluation.items():
        counts = [scorer.detector.count(scorer.answers(each, texts)) for each in (None, edit)]
        about = behaviour.evaluation[name].about
        evaluations.append(Counted(name=name, about=about, before=counts[0], after=counts[1], prompts=len(texts)))
    scorer.session.off()
    shown = scorer.detector.count(before)
    return HeldOut(
        before=shown,
        after=scores.refusals,
        prompts=scores.prompts,
        before_interval=wilson_interval(shown, scores.prompts),
        after_interval=wilson_interval(scores.refusals, scores.prompts),
        kl=scores.kl,
        kl_tokens=scores.kl_tokens,
        kl_answered=ordinary.kl_answered,
        ordinary_before=ordinary.before,
        ordinary_after=ordinary.after,
        ordinary_prompts=len(prompts.good_held_out),
        evaluations=evaluations,
        opinions=second_opinions(
            scorer.settings, behaviour, prompts.bad_held_out, before, after, emit, device=scorer.loaded.device
        ),
    )
