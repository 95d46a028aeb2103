"""The menu: exact answers are taken, every other is asked for again."""

import io

import pytest

from bruno.engine.menu import choose_trials, read_answer, table
from bruno.engine.scoring.scores import Scores
from bruno.engine.search.study import FinishedTrial
from bruno.errors import BrunoError

SCORES = [(9, 0.0), (0, 0.5), (4, 0.1), (0, 0.9), (5, 0.2)]
TRIALS = [FinishedTrial(i, {}, Scores(refusals=r, prompts=10, kl=kl)) for i, (r, kl) in enumerate(SCORES)]


def menu(text: str) -> tuple[list[int], str]:
    out = io.StringIO()
    return [trial.number for trial in choose_trials(TRIALS, io.StringIO(text), out)], out.getvalue()


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [("2\n", [2]), ("  5 4\t1 \n", [5, 4, 1]), ("none\n", []), ("3", [3])],
)
def test_exact_answers_are_taken(typed, chosen):
    numbers, out = menu(typed)
    assert numbers == chosen and out.count("Trials to save: ") == 1


def test_the_front_is_shown_and_any_trial_may_be_chosen():
    _, out = menu("4\n")
    rows = [line.split() for line in out.splitlines()[1:4]]
    assert rows == [["2", "0/10", "0.5000"], ["3", "4/10", "0.1000"], ["1", "9/10", "0.0000"]]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "Any trial"),
        ("   ", "Any trial"),
        ("None", "'None' is no trial number"),
        ("none 2", "'none' is no trial number"),
        ("6", "no scored trial 6"),
        ("0", "no scored trial 0"),
        ("2 2", "named twice"),
        ("2,3", "'2,3' is no trial number"),
        ("-2", "no trial number"),
        ("2.0", "no trial number"),
        ("²", "no trial number"),
        ("9" * 5000, "no scored trial 999"),
        ("\x1b[2J", "'\\x1b[2J' is no trial number"),
    ],
)
def test_anything_else_is_asked_again(typed, words):
    numbers, out = menu(f"{typed}\n2\n")
    assert numbers == [2] and out.count("Trials to save: ") == 2 and words in out and "\x1b" not in out
    with pytest.raises(ValueError, match=r"."):
        read_answer(typed, [1, 2, 3, 4, 5])


def test_the_end_of_the_input_chooses_nothing():
    with pytest.raises(BrunoError, match="No trial was chosen"):
        menu("7\n")


def test_kl_over_tokens_is_a_column_where_it_was_measured():
    measured = FinishedTrial(6, {}, Scores(refusals=1, prompts=10, kl=0.3, kl_tokens=0.25))
    lines = table([measured, TRIALS[0]])
    assert lines[0].split()[-1] == "tokens" and lines[1].split() == ["7", "1/10", "0.3000", "0.2500"]
