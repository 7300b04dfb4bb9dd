"""Samples with choices are right by the choice that is named or scored, and reported by letter."""

from dataclasses import replace
from typing import Any

import pytest

from lrkit.contract.choices import with_choices
from lrkit.contract.sample import Sample
from lrkit.errors import DataError
from lrkit.evaluate.by_choice import by_choice, choices_of, is_right
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.runtime.answer.answer import Answer, Choice
from tests.bundles import QUESTION, picture, torch_reasoner

THINGS = ("a bird", "a plane", "a kite")


def sample(answer: str, choices: tuple[str, ...] = THINGS) -> Sample:
    return Sample((), with_choices("What is it?", choices), (), answer, choices=choices)


def said(text: str, answer: str | None, choice: Choice | None = None) -> Answer:
    return Answer(text, answer, "cot", choice=choice)


def test_an_answer_is_right_where_it_names_the_choice() -> None:
    for words in ("B", "(b)", "a plane", "It is a plane.", "The answer is B", "B. a plane"):
        assert is_right(said(f"I see. Answer: {words}", words), sample("B"))
        assert is_right(said(words, words), sample("a plane")) and not is_right(said(words, words), sample("A"))
    assert is_right(said("So the answer is (B).", None), sample("B")), "no marker, and yet a choice is named"
    assert not is_right(said("It may be (A) or (B).", None), sample("B"))
    assert is_right(said("A", "A", Choice(1, "a plane", "scored")), sample("B")), "the engine's choice comes first"
    with pytest.raises(DataError, match="answer 'Z' is none of the 3 choices"):
        is_right(said("A", "A"), sample("Z"))


def test_open_questions_are_scored_as_before() -> None:
    open_one = Sample((), "How many?", (), "7")
    assert is_right(said("Answer: 7", "7"), open_one) and is_right(said("7 birds", "7 birds"), open_one)
    assert not is_right(said("7", None), open_one) and not is_right(said("not 7", "not 7"), open_one)


def test_a_letter_is_said_where_the_answer_is_one() -> None:
    assert choices_of(Sample((), "How many?", (), "7")) is None
    kinds = [("B", THINGS, "listed"), ("a plane", THINGS, "texts"), ("B", ("A", "B"), "texts"), ("D", THINGS, "texts")]
    for answer, choices, say in kinds:
        found = choices_of(sample(answer, choices))
        assert found is not None and (found.texts, found.say) == (choices, say)


def test_the_report_counts_by_letter() -> None:
    samples = [sample("A"), sample("B"), sample("B"), Sample((), "How many?", (), "7")]
    answers = [said("A", "A"), said("(A)", "(A)"), said("?", None), said("7", "7")]
    found: Any = by_choice(samples, answers)
    assert found["samples"] == 3 and found["chosen"] == {"A": 2, "none": 1} and found["by"] == {"said": 3}
    letters = found["accuracy_by_letter"]
    assert (letters["A"]["correct"], letters["A"]["total"]) == (1, 1)
    assert (letters["B"]["correct"], letters["B"]["total"]) == (0, 2)
    assert by_choice(samples[3:], answers[3:]) is None


def test_an_evaluation_scores_choices_on_request() -> None:
    rooms = tuple("0123456789")
    samples = [Sample((picture(number),), QUESTION, (), str(number), choices=rooms) for number in range(4)]
    reasoner = torch_reasoner("latent")
    for way, known in (("said", "said"), ("scored", "scored")):
        result = evaluate(reasoner, samples, EvalOptions(("direct",), 4, 1, 2, choices=way)).results["direct"]
        report = result.to_dict(samples)["choices"]
        assert report["by"] == {known: 4} and sum(report["chosen"].values()) == 4
        answered = [reasoner.ask(one.images, one.question, "direct", choices=choices_of(one)) for one in samples]
        if way == "scored":
            assert [one.choice for one in result.answers] == [one.choice for one in answered]
            assert "none" not in report["chosen"]
    open_ones = [replace(one, choices=()) for one in samples[:1]]
    result = evaluate(reasoner, open_ones, EvalOptions(("direct",), 4, 0, 2, choices="scored")).results["direct"]
    assert "choices" not in result.to_dict(open_ones)
