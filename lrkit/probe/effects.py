"""What an intervention does to the answers, as figures with 95% intervals, paired by question. Torch-free."""

from collections.abc import Mapping
from typing import Any

from lrkit.contract.scoring import accuracy, answers_match, compare_paired
from lrkit.probe.asking import Told
from lrkit.probe.donors import Donor

Answers = Mapping[int, Told]
"""Number of a question -> its answer."""


def effect(plain: Answers, told: Answers, donors: Mapping[int, Donor] | None = None) -> dict[str, Any]:
    """For JSON: `told` against `plain` on the questions that were asked again. Shares, unknown is null.
    `followed` is of the questions that have a donor."""
    numbers = list(told)
    right = [told[number].right for number in numbers]
    before = [plain[number].right for number in numbers]
    followers = [number for number in numbers if donors and number in donors]
    follows = [follows_donor(number, plain, told, donors or {}) for number in followers]
    return {
        "asked": len(numbers),
        "changed": share([not same_answer(plain[number].answer, told[number].answer) for number in numbers]),
        "right": share(right),
        "right_before": share(before),
        "lost": compare_paired(before, right).to_dict(),
        "followed": None if donors is None else share(follows),
    }


def share(values: list[bool]) -> dict[str, Any]:
    """A share of True with its 95% interval (Wilson)."""
    return accuracy(values).to_dict()


def follows_donor(number: int, plain: Answers, told: Answers, donors: Mapping[int, Donor]) -> bool:
    """Whether the answer became what the model answers to the donor, which it was not before."""
    given = donors[number].answer
    return (
        given is not None and same_answer(told[number].answer, given) and not same_answer(plain[number].answer, given)
    )


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two answers say the same; two that name none do."""
    if one is None or other is None:
        return one is other
    return one == other or answers_match(one, other)


def accuracy_with(plain: Answers, told: Answers) -> float:
    """Over all questions: those that were not asked again keep their answers."""
    return sum((told.get(number) or one).right for number, one in plain.items()) / len(plain)
