"""Samples with choices: which choice an answer is, whether that is right, and how often each letter is chosen.

Place in the pipeline: evaluation.py asks -> here -> `ModeResult.to_dict`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lrkit.contract.choices import LETTERS, index_of, letter
from lrkit.contract.choosing import Choices
from lrkit.contract.extract import choice_in, says_right
from lrkit.contract.sample import Sample
from lrkit.contract.scoring import accuracy
from lrkit.runtime.answer.answer import Answer

NONE = "none"
"""In place of a letter, where an answer names no choice, or several."""


def choices_of(sample: Sample) -> Choices | None:
    """What a sample may be answered with, as `Reasoner.ask` takes it; None for an open question. Its question lists
    them already, and its answer is a letter or the text of one."""
    if not sample.choices:
        return None
    is_letter = sample.answer in LETTERS[: len(sample.choices)] and sample.answer not in sample.choices
    return Choices(sample.choices, "listed" if is_letter else "texts")


def chosen(answer: Answer, sample: Sample) -> int | None:
    """The choice that an answer is: the engine's, or what the words name."""
    if answer.choice is not None:
        return answer.choice.index
    return choice_in(answer.text if answer.answer is None else answer.answer, sample.choices)


def is_right(answer: Answer, sample: Sample) -> bool:
    """Whether an answer is the sample's: by the engine's choice where it made one, else as `says_right` has it.

    Raises:
        DataError: the sample's answer is none of its choices.
    """
    if answer.choice is not None and sample.choices:
        return answer.choice.index == index_of(sample.answer, sample.choices)
    return says_right(answer.answer, answer.text, sample)


def by_choice(samples: Sequence[Sample], answers: Sequence[Answer]) -> dict[str, Any] | None:
    """For a JSON report: accuracy by the letter of the right choice, how often each is chosen, and how that was known;
    None where no sample has choices."""
    pairs = [(sample, answer) for sample, answer in zip(samples, answers, strict=True) if sample.choices]
    if not pairs:
        return None
    found: dict[str, list[bool]] = {}
    said: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for sample, answer in pairs:
        right, index = index_of(sample.answer, sample.choices), chosen(answer, sample)
        found.setdefault(letter(right), []).append(index == right)
        said[NONE if index is None else letter(index)] += 1
        ways["said" if answer.choice is None else answer.choice.by] += 1
    return {
        "samples": len(pairs),
        "accuracy_by_letter": {name: accuracy(right).to_dict() for name, right in sorted(found.items())},
        "chosen": dict(sorted(said.items())),
        "by": dict(ways),
    }
