"""The held-out report against its parts, computed one by one on a tiny real model."""

import pytest

from bruno.engine.data.behaviours import Evaluation, load_behaviour
from bruno.engine.data.prompts import PromptSets, Source
from bruno.engine.edits.session import EditSession
from bruno.engine.events import parse_event
from bruno.engine.scoring.held_out import held_out_report
from bruno.engine.scoring.scores import wilson_interval
from bruno.settings.engine import EngineSettings
from tests.engine.models import loaded_model
from tests.engine.scoring.test_scores import BAD, GOOD, scorer, strong

LOOK_ALIKES = [f"look-alike {n} {'z' * n}" for n in range(7)]
PROMPTS = PromptSets([], [], [], [], BAD, GOOD, {"look-alikes": LOOK_ALIKES})


@pytest.fixture(scope="module")
def loaded():
    return loaded_model("llama")


def test_the_report_is_the_sum_of_its_parts(loaded):
    behaviour = load_behaviour(EngineSettings(model="demo")).model_copy(
        update={"evaluation": {"look-alikes": Evaluation(prompts=Source(source="demo"), about="should fall")}}
    )
    edit = strong(loaded)
    events = []
    with EditSession(loaded.writers, max_trials=1) as session:
        part = scorer(loaded, session, kl_divergence_tokens=3, judge="./nowhere")
        report = held_out_report(part, edit, behaviour, PROMPTS, events.append)
        assert session.trials == 0
        before, scores = part.base_refusals(), part.score([edit])[0]
        ordinary = part.ordinary_refusals(edit)
        looked = [part.detector.count(part.answers(each, LOOK_ALIKES)) for each in (None, edit)]
    assert (report.before, report.after, report.prompts) == (before, scores.refusals, 5)
    assert report.before_interval == wilson_interval(before, 5)
    assert report.after_interval == wilson_interval(scores.refusals, 5)
    assert (report.kl, report.kl_tokens) == (scores.kl, scores.kl_tokens)
    assert report.kl_tokens is not None and report.kl_tokens > 1e-3
    assert (report.ordinary_before, report.ordinary_after, report.ordinary_prompts) == (*ordinary, 6)
    (look_alikes,) = report.evaluations
    assert (look_alikes.before, look_alikes.after, look_alikes.prompts) == (*looked, 7)
    assert report.opinions == [] and events[0].method == "second opinion by judge ./nowhere"
    assert parse_event(report.model_dump_json()) == report
    lines = "\n".join(report.lines())
    assert f"* Held-out set look-alikes: {looked[0]}/7 before, {looked[1]}/7 after (should fall)" in lines
    assert "* Held-out KL over several tokens: " in lines


def test_answers_are_whole_where_scores_stop_early(loaded):
    with EditSession(loaded.writers, max_trials=1) as session:
        part = scorer(loaded, session, max_new_tokens=40)
        whole = part.answers(None)
        early = part._generate(part.bad, None, 0, early=True).texts[0]
        assert all(one.startswith(other) for one, other in zip(whole, early, strict=True))
        assert sum(map(len, whole)) > sum(map(len, early))
        assert part.detector.count(whole) == part.detector.count(early) == part.base_refusals()
        edited = part.answers(strong(loaded))
        assert edited != whole
        assert part.detector.count(edited) == part.score([strong(loaded)])[0].refusals
