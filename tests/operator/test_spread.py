"""Several instances in words: what is asked back, what is refused before anything is rented, and what the one plan shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from bruno.errors import BrunoError, Denied, InputError
from bruno.guard.decision import Verdict
from bruno.guard.permit import Origin
from bruno.operator.views import Ask, Card
from bruno.runs.database import address_of, shared
from bruno.settings.engine import Search
from bruno.settings.secrets import hide_url, redact

PASSWORD = "correct-horse-battery"


def listening(answer: bytes) -> Iterator[int]:
    """Something that says `answer` to whoever connects: a PostgreSQL server's first byte, or another program's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    link.recv(8)
                    link.sendall(answer)

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def port() -> Iterator[int]:
    yield from listening(b"N")


@pytest.fixture
def with_database(world, port: int):
    operator, control = world
    operator.sandbox = True
    operator.settings.search = Search(storage=f"postgresql://bruno:{PASSWORD}@127.0.0.1:{port}/studies")
    return operator, control


def ask(operator, words: str):
    return operator.ask(words, origin=Origin.KEYBOARD)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("start demo on 4 H200s", ["4 instances with one H200 each, a worker on each", "one instance with 4 x H200"]),
        (
            "start demo on 4 H200s with 4 workers",
            ["4 instances with one H200 each, a worker on each", "one instance with 4 x H200, 4 workers on it"],
        ),
        (
            "start demo on 4 H200s with 2 workers",
            ["2 instances with 2 H200 each, a worker on each", "one instance with 4 x H200, 2 workers on it"],
        ),
        (
            "start demo on an H200 with 3 workers",
            ["3 instances with one H200 each, a worker on each", "one instance with 3 x H200, 3 workers on it"],
        ),
    ],
)
def test_a_number_without_a_place_is_asked_back(world, words: str, options: list[str]) -> None:
    operator, _ = world
    reply = ask(operator, words)
    assert isinstance(reply, Ask)
    assert [option.text for option in reply.clarification.options] == options
    assert "billed until it is stopped" in reply.clarification.options[0].consequence
    assert "search.storage is not set" in reply.clarification.options[0].consequence


def test_each_reading_leads_to_its_own_plan(with_database) -> None:
    operator, _ = with_database
    question = ask(operator, "start demo on 2 H200s with 2 workers").clarification
    apart = operator.choose(question, "a", origin=Origin.KEYBOARD)
    together = operator.choose(question, "b", origin=Origin.KEYBOARD)
    rents = [
        [step.action for step in card.plan.steps if step.action.kind == "create_instance"] for card in (apart, together)
    ]
    assert [[rent.gpu_count for rent in each] for each in rents] == [[1, 1], [2]]
    assert together.plan.steps[-1].action.settings["search"]["workers"] == 2


@pytest.mark.parametrize(
    "words", ["start demo on 2 x H200", "start demo on an H200", "start demo on an H200 with 1 worker"]
)
def test_clear_words_are_not_asked_about(world, words: str) -> None:
    operator, _ = world
    assert isinstance(ask(operator, words), Card)


@pytest.mark.parametrize(
    ("words", "storage", "error", "said"),
    [
        ("start demo on 2 instances", "", InputError, "none is set. Set search.storage = postgresql://"),
        ("start demo on 2 instances", "sqlite:////tmp/x.db", InputError, "names no such database"),
        ("start demo on 2 instances", "postgresql:///studies", InputError, "names no host"),
        (
            "start demo on 2 instances",
            "postgresql://u:secret-word@127.0.0.1:1/studies",
            Denied,
            "nothing answers at 127.0.0.1:1",
        ),
        ("start demo on 3 instances with 2 workers", "", InputError, "one worker runs on each"),
        ("start demo on 4 H200s with 3 workers", "", InputError, "evenly"),
        ("start demo on 16 instances", "PORT", InputError, "16 instances were asked for, and there are"),
        ("start demo on 2 instances with an H200 each under 3 $/h", "PORT", InputError, "together, more than $3/h"),
    ],
)
def test_it_is_refused_before_anything_is_rented(
    with_database, words: str, storage: str, error: type[BrunoError], said: str
) -> None:
    operator, control = with_database
    if storage != "PORT":
        operator.settings.search = Search(storage=storage)
    with pytest.raises(error) as caught:
        ask(operator, words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret-word" not in str(caught.value)
    assert control.acts() == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_a_rented_machine_does_not_reach_our_own_loopback(host: str) -> None:
    with pytest.raises(InputError, match="which every instance takes for itself"):
        shared(f"postgresql://u:p@{host}/studies")
    assert shared(f"postgresql://u:p@{host}/studies", local=True).port == 5432


def test_what_answers_must_be_postgresql(with_database) -> None:
    operator, _ = with_database
    for port in listening(b"H"):
        operator.settings.search = Search(storage=f"postgresql://u:p@127.0.0.1:{port}/studies")
        with pytest.raises(Denied, match="is no PostgreSQL server"):
            ask(operator, "start demo on 2 instances")


def test_the_plan_shows_each_instance_the_sum_and_the_database(with_database, port: int) -> None:
    operator, _ = with_database
    card = ask(operator, "start demo on 3 instances with an H200 each")
    assert card.decision.verdict is Verdict.CONFIRM
    assert card.decision.word == "yes"
    rents = [step.action for step in card.plan.steps if step.action.kind == "create_instance"]
    assert [rent.label for rent in rents] == [f"{card.plan.run_id}-{number}" for number in (1, 2, 3)]
    assert len({rent.offer_id for rent in rents}) == len({rent.machine_id for rent in rents}) == 3
    prices = [card.plan.fact("dph_total", rent.label).value for rent in rents]
    assert card.plan.cost.per_hour == pytest.approx(sum(prices))
    play = card.plan.steps[-1].action
    assert play.workers == tuple(rent.label for rent in rents)
    assert play.settings["search"]["study"] == card.plan.run_id
    text = "\n".join(card.lines())
    assert f"postgresql://bruno@127.0.0.1:{port}/studies" in text
    assert "for 3 instances together" in text
    assert "of disk on each included" in text
    assert "2 x 0.3 GB of weights + 20 GB" in text
    for number in (1, 2, 3):
        assert f" {number}. $" in text
    assert max(len(line) for line in card.lines()) <= 80
    top = "\n".join(card.lines()[:12])  # seen first at 80x24, without scrolling
    assert all(words in top for words in (" 3. $", "for 3 instances together", "studies"))


def test_the_time_is_shared_out_and_the_money_is_not(with_database) -> None:
    operator, _ = with_database
    alone = ask(operator, "start qwen32b on an H200 with 40 trials").plan
    shared_out = ask(operator, "start qwen32b on 3 instances with an H200 each with 40 trials").plan
    assert any("/ 3 workers = " in note for note in shared_out.notes)
    assert shared_out.cost.hours < alone.cost.hours
    assert shared_out.cost.total > alone.cost.total  # each is also paid for while it installs, and until it is stopped
    assert shared_out.cost.total == pytest.approx(shared_out.cost.hours * shared_out.cost.per_hour)


def test_the_password_is_in_no_plan_and_no_record(with_database) -> None:
    operator, _ = with_database
    card = ask(operator, "start demo on 2 instances")
    operator.save_plan(card)
    assert PASSWORD not in card.model_dump_json()
    assert PASSWORD not in "\n".join(card.lines())
    operator.close()
    for path in operator.paths.home.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path


def test_a_run_on_one_instance_keeps_its_password_out_of_the_plan_too(with_database) -> None:
    operator, _ = with_database
    assert PASSWORD not in ask(operator, "start demo on an H200").model_dump_json()


def test_budgets_hold_the_sum(with_database) -> None:
    operator, _ = with_database
    ask(operator, "under 4 $/h")
    card = ask(operator, "start demo on 2 instances with an H200 each")
    assert card.decision.verdict is Verdict.DENY
    assert "under 4 $/h" in " ".join(card.decision.reasons)
    assert all(
        card.plan.fact("dph_total", step.action.label).value < 4
        for step in card.plan.steps
        if step.action.kind == "create_instance"
    )


def test_live_instances_are_counted_with_those_that_are_to_come(with_database) -> None:
    operator, control = with_database
    others = [offer for offer in ask(operator, "offers").rows if not offer.gpu.startswith("H200")]
    for offer in others[:6]:
        control.seed(offer.offer_id)
    card = ask(operator, "start demo on 3 instances with an H200 each")
    assert any("3 more are wanted, the most allowed is 8" in reason for reason in card.decision.reasons)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://bruno:pw@db.example.org:5433/studies", "postgresql://bruno@db.example.org:5433/studies"),
        (
            "postgresql+psycopg://b:p%40ss@[2001:db8::1]/x?sslmode=require",
            "postgresql+psycopg://b@[2001:db8::1]:5432/x",
        ),
        (
            "postgresql://postgres:postgres@db.example.org/postgres",
            "postgresql://postgres@db.example.org:5432/postgres",
        ),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("", ""),
    ],
)
def test_an_address_has_no_password(url: str, address: str) -> None:
    assert address_of(url).address == address


def test_a_url_with_a_password_is_redacted_and_its_address_is_not() -> None:
    url = "postgresql://postgres:postgres@db.example.net:5432/postgres"
    hide_url(url)
    assert redact(f"cannot open {url}") == "cannot open [redacted]"
    assert redact(address_of(url).address) == address_of(url).address
