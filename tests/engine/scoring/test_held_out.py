"""The held-out report against its parts, computed one by one on a tiny real model."""

import pytest

from bruno.engine.data.behaviours import Evaluation, load_behaviour
from bruno.engine.data.prompts import PromptSets, Source
from bruno.engine.edits.session import EditSession
from bruno.engine.events import parse_event
from bruno.engine.model.generate import first_token_logprobs
from bruno.engine.scoring.held_out import held_out_report
from bruno.engine.scoring.scores import kl_divergence, wilson_interval
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
        ordinary = part.ordinary(edit)
        looked = [part.detector.count(part.answers(each, LOOK_ALIKES)) for each in (None, edit)]
    assert (report.before, report.after, report.prompts) == (before, scores.refusals, 5)
    assert report.before_interval == wilson_interval(before, 5)
    assert report.after_interval == wilson_interval(scores.refusals, 5)
    assert (report.kl, report.kl_tokens) == (scores.kl, scores.kl_tokens)
    assert report.kl_tokens is not None and report.kl_tokens > 1e-3
    assert (report.ordinary_before, report.ordinary_after, report.ordinary_prompts) == (*ordinary[:2], 6)
    assert report.kl_answered == ordinary.kl_answered
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


def test_kl_is_also_told_without_the_ordinary_prompts_that_the_original_refuses(loaded):
    """There an edit is meant to change the answer: one refused prompt can outweigh sixty answered ones."""
    with EditSession(loaded.writers, max_trials=1) as session:
        part = scorer(loaded, session)
        edit = strong(loaded)
        texts = part.answers(None, GOOD)
        part.detector = Among(texts[:2])
        ordinary = part.ordinary(edit)
        edited = first_token_logprobs(loaded, part.good, session=session)[0]
        own = [kl_divergence(part.base[i : i + 1], edited[i : i + 1]) for i in range(len(texts))]
        refused = [text in texts[:2] for text in texts]
        assert 2 <= ordinary.before == sum(refused) < len(texts)
        kept = [kl for kl, left_out in zip(own, refused, strict=True) if not left_out]
        assert ordinary.kl_answered == pytest.approx(sum(kept) / len(kept))
        part.detector = Among([])
        assert part.ordinary(edit).kl_answered is None
        part.detector = Among(texts)
        assert part.ordinary(edit).before == len(texts)
        assert part.ordinary(edit).kl_answered is None


class Among:
    """A detector that knows some texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = set(texts)

    def count(self, texts) -> int:
        return sum(text in self.texts for text in texts)

    def settled(self, _text: str) -> bool:
        return False
