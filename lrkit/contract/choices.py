"""Multiple choice as text: one template for training data, asking and other evaluation harnesses. Torch-free.

    What is it?
    (A) a bird
    (B) a plane

Place in the pipeline: hub data, `ask(choices=)` and the lmms-eval plugin -> `with_choices` -> the question of a prompt.
Of such a question the answer is a letter; scoring.py reads it in any common writing: "B", "(B)", "B. a plane".
"""

from collections.abc import Sequence
from string import ascii_uppercase

from lrkit.errors import DataError, one_line, shown

LETTERS = ascii_uppercase
"""Of the choices, in their order."""
USUAL_LETTERS = LETTERS[:10]
"""Of usual questions. Within a text the later ones are mostly units, symbols and initials: 5 N., potassium (K), T. rex.
"""
MIN_CHOICES = 2
"""Fewer leave nothing to choose."""


def letter(index: int) -> str:
    """Of the choice with this index, from 0: "A", "B", ...

    Raises:
        DataError: no choice has such an index.
    """
    if not 0 <= index < len(LETTERS):
        raise DataError(f"choice number {index + 1} has no letter; a question has at most {len(LETTERS)} choices")
    return LETTERS[index]


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with a line for each choice behind it; line breaks within a choice become spaces.

    Raises:
        DataError: there are fewer than `MIN_CHOICES` or more than there are letters, or one is no text or empty.
    """
    if isinstance(choices, str) or not MIN_CHOICES <= len(choices) <= len(LETTERS):
        seen = "one text" if isinstance(choices, str) else f"{len(choices)} in number"
        raise DataError(f"choices are {seen}; give a list of {MIN_CHOICES} to {len(LETTERS)} texts")
    lines = [f"({letter(index)}) {_line(choice, letter(index))}" for index, choice in enumerate(choices)]
    return "\n".join([question.rstrip(), *lines])


def index_of(answer: str, choices: Sequence[str]) -> int:
    """Which of `choices` an answer names: by its letter, with or without brackets, or by its whole text.

    A text that is both, as "B" among the choices "B" and "A", is taken for the text.

    Raises:
        DataError: it names none.
    """
    texts = [" ".join(choice.split()).casefold() for choice in choices]
    said = " ".join(answer.split())
    if said.casefold() in texts:
        return texts.index(said.casefold())
    bare = said.strip("().: ").upper()
    if len(bare) == 1 and bare in LETTERS[: len(choices)]:
        return LETTERS.index(bare)
    last = letter(len(choices) - 1)
    raise DataError(f"answer {shown(answer, 60)} is none of the {len(choices)} choices; give a letter A to {last}")


def _line(choice: object, name: str) -> str:
    if not isinstance(choice, str) or not choice.strip():
        seen = "empty" if isinstance(choice, str) else one_line(repr(choice), 60)
        raise DataError(f"choice {name} is {seen}; give a text")
    return " ".join(choice.split())
