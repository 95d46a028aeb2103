"""Words in, replies out, on a real provider's API: what is planned, what is denied, what is asked back."""

from __future__ import annotations

import pytest

from bruno.errors import BrunoError, Denied, InputError, Unreachable
from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin
from bruno.operator.card import lines as card_lines
from bruno.operator.views import Answer, Ask, Card, Instances, Offers, Progress

KEYBOARD = Origin.KEYBOARD


def ask(operator, words: str):
    return operator.ask(words, origin=KEYBOARD)


def test_a_start_is_a_card_with_price_and_disk(world) -> None:
    operator, _ = world
    card = ask(operator, "start demo on an H200")
    assert isinstance(card, Card)
    assert card.decision.verdict is Verdict.CONFIRM
    assert card.decision.word == "yes"
    text = "\n".join(card.lines())
    assert "disk included" in text
    assert "2 x 0.3 GB of weights + 20 GB" in text
    assert f"plan {card.plan.plan_id[:12]}" in text
    create = next(step.action for step in card.plan.steps if step.action.kind == "create_instance")
    assert create.gpu == "H200"
    playbook = card.plan.steps[-1].action
    assert playbook.settings["behaviour"] == "over-refusal"


def test_the_cheapest_fitting_offer_is_taken(world) -> None:
    operator, _ = world
    offers = ask(operator, "offers for an H200")
    assert isinstance(offers, Offers)
    card = ask(operator, "start demo on an H200")
    create = next(step.action for step in card.plan.steps if step.action.kind == "create_instance")
    assert create.offer_id in {row.offer_id for row in offers.rows}
    prices = {row.offer_id: row.per_hour for row in offers.rows if row.gpu == "H200" and row.gpu_count == 1}
    assert prices[create.offer_id] == min(prices.values())


def test_small_disk_is_denied_with_arithmetic(world) -> None:
    operator, _ = world
    card = ask(operator, "start qwen32b on an H200 with 100 GB")
    assert card.decision.verdict is Verdict.DENY
    assert "200 GB" in " ".join(card.decision.reasons)
    with pytest.raises(Denied):
        operator.act(card, None, on_event=lambda _: None)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ("start qwen33b on an H200", InputError, "qwen32b"),
        ("start demo on an H300", InputError, "h200"),
        ("start demo on 16 x H200", InputError, "no offer"),
        ("start demo on an H200 under 0.01 $/h", InputError, "cheapest costs"),
        ("start llama8b on a 4090", Denied, "HF_TOKEN"),
        ("stop it", InputError, "no instance of bruno's own"),
        ("stop instance 424242", InputError, "no instance 424242"),
        ("progress of run nowhere-1", InputError, "nowhere-1"),
        ("chat", InputError, "no model is at home"),
        ("resume", InputError, "no runs yet"),
        ("forget instruction 7", InputError, "no instruction 7"),
    ],
)
def test_bad_requests_say_what_to_do(world, words: str, error: type[BrunoError], said: str) -> None:
    operator, _ = world
    with pytest.raises(error) as caught:
        ask(operator, words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vague_words_ask(world) -> None:
    operator, _ = world
    reply = ask(operator, "finish the job")
    assert isinstance(reply, Ask)
    with pytest.raises(InputError, match="letter"):
        operator.choose(reply.clarification, "yes", origin=KEYBOARD)


def test_unknown_words_suggest(world) -> None:
    operator, _ = world
    reply = ask(operator, "blorb the frobnicator")
    assert isinstance(reply, Answer)
    assert reply.failed
    assert reply.suggestions


def test_instructions_are_held_until_taken_back(world) -> None:
    operator, _ = world
    ask(operator, "under 1 $/h")
    card = ask(operator, "start demo on an H200")
    assert card.decision.verdict is Verdict.DENY
    assert "under 1 $/h" in " ".join(card.decision.reasons)
    assert "under 1 $/h" in str(ask(operator, "instructions").rows)
    ask(operator, "forget the instruction")
    assert ask(operator, "start demo on an H200").decision.verdict is Verdict.CONFIRM


def test_an_unreadable_list_is_unknown_and_nothing_rests_on_it(world) -> None:
    operator, control = world
    control.order("list_gone", times=50)
    view = ask(operator, "instances")
    assert isinstance(view, Instances)
    assert view.view.known is False
    with pytest.raises(Unreachable, match="could not be read"):
        ask(operator, "stop it")
    card = ask(operator, "start demo on an H200")
    assert card.decision.verdict is Verdict.DENY


def test_stop_never_means_somebody_elses(world) -> None:
    operator, control = world
    offer = ask(operator, "offers for a 4090").rows[0].offer_id
    foreign = control.seed(offer, label="somebody-else")
    with pytest.raises(InputError, match="no instance of bruno's own"):
        ask(operator, "stop it")
    listed = ask(operator, "instances").view.rows
    assert [(row.instance_id, row.run_id) for row in listed] == [(foreign, None)]
    assert "somebody-else" in str(ask(operator, "costs").rows)


def test_stop_everything_says_what_is_left(world) -> None:
    operator, control = world
    control.seed(ask(operator, "offers for a 4090").rows[0].offer_id, label="left-running")
    reply = ask(operator, "STOP")
    assert "nothing new is started" in reply.text
    assert "left-running" in str(reply.rows)


def test_no_runs_is_said_not_drawn_empty(world) -> None:
    operator, _ = world
    assert isinstance(ask(operator, "progress"), Answer)
    assert ask(operator, "list runs") == Progress(runs=())


def test_a_saved_plan_is_found_again_and_a_changed_one_is_not(world) -> None:
    operator, _ = world
    card = ask(operator, "start demo on an H200")
    operator.save_plan(card)
    assert operator.saved_plan(card.plan.plan_id).plan == card.plan
    with pytest.raises(InputError, match="no plan"):
        operator.saved_plan("0" * 64)


def test_a_plan_with_a_secret_says_that_its_id_cannot_confirm_it(world) -> None:
    operator, _ = world
    secret = "hf_" + "a1" * 15
    card = ask(operator, f"! curl -H 'Authorization: {secret}' http://127.0.0.1:1/")
    operator.save_plan(card)
    with pytest.raises(Denied, match="holds a secret") as caught:
        operator.saved_plan(card.plan.plan_id)
    assert "terminal" in caught.value.fix and secret not in str(caught.value)


def test_runs_need_no_key(world) -> None:
    operator, _ = world
    ask(operator, "under 9 $/h")
    from bruno.operator.service import Operator

    keyless = Operator(operator.settings, operator.paths, api_key=None)
    assert keyless.runs() == ()
    with pytest.raises(InputError, match="VAST_API_KEY"):
        keyless.ask("instances", origin=KEYBOARD)
    keyless.close()


def test_the_card_of_an_end_says_what_dies_before_what_was_looked_at(world) -> None:
    operator, control = world
    mine = control.seed(ask(operator, "offers for a 4090").rows[0].offer_id, label="somebody-else")
    stop = card_lines(ask(operator, f"stop {mine}"), 78)
    destroy = "\n".join(card_lines(ask(operator, f"destroy instance {mine}"), 78))
    named = [line.split()[0] for line in stop if line[:1].islower()]
    assert named[:3] == ["plan", "price", "ends"]
    assert any("is being paid now" in line for line in stop)
    assert "nothing more once it is destroyed" in destroy
    assert "cannot be undone" in destroy
    assert "$0.00" not in destroy
