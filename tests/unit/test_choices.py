"""A question with choices is one text everywhere, and its answer one letter."""

import pytest

from lrkit.contract.choices import LETTERS, index_of, letter, with_choices
from lrkit.contract.scoring import answers_match
from lrkit.errors import DataError


def test_each_choice_has_a_line_and_a_letter() -> None:
    text = with_choices("What is it? ", ["a bird", "a\n  plane", "50% of {x}"])
    assert text == "What is it?\n(A) a bird\n(B) a plane\n(C) 50% of {x}"
    assert answers_match("(B) a plane", letter(1)) and not answers_match("(A) a bird", letter(1))
    assert letter(25) == "Z"


def test_what_is_no_list_of_choices_is_refused() -> None:
    for choices, said in (
        ([], "choices are 0 in number; give a list of 2 to 26 texts"),
        (["one"], "choices are 1 in number"),
        ([str(number) for number in range(5000)], "choices are 5000 in number"),
        ("abc", "choices are one text"),
        (["a", ""], "choice B is empty; give a text"),
        (["a", None], "choice B is None; give a text"),
    ):
        with pytest.raises(DataError, match=said):
            with_choices("Which?", choices)  # pyright: ignore[reportArgumentType]
    for index in (-1, len(LETTERS)):
        with pytest.raises(DataError, match="has no letter"):
            letter(index)


def test_an_answer_names_a_choice_by_letter_or_text() -> None:
    choices = ["Sahara", "Gobi  desert", "B"]
    assert [index_of(said, choices) for said in ("A", "(c)", "B.", "gobi desert", "sahara")] == [0, 2, 1, 1, 0]
    assert index_of("B", choices) == 2, "the text of a choice comes before its letter"
    for wrong in ("D", "", "Namib", "AB", "7"):
        with pytest.raises(DataError, match=r"is none of the 3 choices; give a letter A to C"):
            index_of(wrong, choices)
