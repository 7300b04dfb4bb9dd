"""A choice, a number or yes or no is found in what was said; what names none, or two, names none."""

from decimal import Decimal

import pytest

from lrkit.contract.choices import letter
from lrkit.contract.extract import choice_in, is_correct, names_answer, number_in, says_right, yes_or_no_in
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.sample import Sample

THINGS = ["a bird", "a plane", "red", "dark red"]


@pytest.mark.parametrize(
    ("said", "index"),
    [
        ("B", 1), ("b", 1), ("(b)", 1), ("B.", 1), ("**B**", 1), ("[B]", 1), (" B ) ", 1), ("B. a plane", 1),
        ("B: it flies", 1), ("I choose B, as it flies", 1),
        ("The answer is B", 1), ("the answer is (B).", 1), ("Answer: C", 2), ("the correct option is d", 3),
        ("So the final answer is option C, since it is red.", 2), ("It must be (C), I think", 2), ("answer=B", 1),
        ("a plane", 1), ("A Plane.", 1), ("It is a plane.", 1), ("The answer is a plane", 1),
        ("The answer is a bird.", 0),
        ("dark red", 3), ("It is dark red", 3), ("It is red", 2), ("a", 0),
    ],
)  # fmt: skip
def test_a_choice_is_found(said: str, index: int) -> None:
    assert choice_in(said, THINGS) == index


@pytest.mark.parametrize(
    "said",
    [
        "", "   ", "E", "(E)", "The answer is Z", "A or B", "(A) or (B)", "B, or maybe (C)", "red and dark red",
        "(B) a bird", "not B",
        "not (B)", "The answer is not B", "It isn't a plane", "It is not a plane", "neither a bird nor a plane",
        "infrared",
        "I do not know", "A bicycle", "I see", "\N{FULLWIDTH LATIN CAPITAL LETTER B}\0", "?", "None of the above",
    ],
)  # fmt: skip
def test_what_names_no_choice_or_several_names_none(said: str) -> None:
    assert choice_in(said, THINGS) is None


def test_choices_that_look_like_one_another_are_told_apart() -> None:
    assert choice_in("It is 17.", ["7", "17"]) == 1 and choice_in("1,000", ["10", "1000"]) == 1
    assert choice_in("It's 3.5", ["3", "3.5"]) == 1 and choice_in("3.5", ["3", "3.5"]) == 1
    vitamins = ["vitamin A", "vitamin B", "vitamin C"]
    assert choice_in("It is vitamin B", vitamins) == 1 and choice_in("vitamins B and C", vitamins) is None
    assert choice_in("B", ["B", "A"]) == 0, "the text of a choice comes before its letter"
    assert choice_in("x", ["x", "x"]) is None, "two equal choices cannot be told apart"
    many = [f"thing {number}" for number in range(26)]
    assert [choice_in(f"({letter(number)})", many) for number in range(26)] == list(range(26))
    assert choice_in("thing 2", many) == 2 and choice_in("It is thing 25", many) == 25


def test_numbers_and_yes_or_no_are_found() -> None:
    found = {"$7.00": "7", "7 rooms": "7", "-3": "-3", "\u22123 degrees": "-3", "1,250 km": "1250", "7, so 7": "7"}
    assert {said: number_in(said) for said in found} == {said: Decimal(one) for said, one in found.items()}
    assert [number_in(said) for said in ("", "not 7", "7 or 8", "v2", "seven", "1.2.3")] == [None] * 6
    assert [yes_or_no_in(said) for said in ("Yes, it is.", "NO", "yes and no", "nothing", "")] == [
        True, False, None, None, None
    ]  # fmt: skip


def test_open_answers_stay_strict_but_for_numbers_and_yes_or_no() -> None:
    right = [("7", "7"), ("7 rooms", "7"), ("It is 7.0", "7"), ("Yes, it does.", "yes"), ("no", "No"), ("(B)", "B")]
    wrong = [("not 7", "7"), ("7 or 8", "7"), ("yes and no", "yes"), ("a red bird", "red"), ("", "7"), ("7", "")]
    assert [pair for pair in right if not names_answer(*pair)] == []
    assert [pair for pair in wrong if names_answer(*pair)] == []


@pytest.mark.parametrize(
    ("said", "right"),
    [("B", True), ("The answer is (B).", True), ("blue", True), ("A", False), ("A or B", False), ("", False)],
)
def test_training_profile_and_probe_score_choices_as_evaluation_does(said: str, right: bool) -> None:
    """They compared texts, so that "The answer is (B)." was wrong in training and right in `lrkit eval`."""
    sample = Sample((), "Which?", (), "B", choices=("red", "blue"))
    assert says_right(said or None, said, sample) is right


def test_an_open_answer_may_stand_in_other_words_wherever_it_is_scored() -> None:
    sample = Sample((), "How many?", (), "7")
    assert says_right("7 rooms", "", sample) and not says_right("not 7", "", sample)
    assert not says_right(None, "7", sample), "no answer was marked"
    assert is_correct("Answer: 7 rooms", "7", PromptFormat()) and not is_correct("Answer: 7 or 8", "7", PromptFormat())
