"""Which choice, number or yes or no a spoken answer names, in whatever words it does. Torch-free.

Place in the pipeline: what was said -> here -> `Answer.choice`, `lrkit eval` on samples with choices, and what a
harness is given. scoring.py compares open answers and stays strict: it never searches inside a longer text. Here the
possible answers are known, so a text may say more; what names none of them, or two, names none.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from lrkit.contract.choices import LETTERS, index_of
from lrkit.contract.generated import Mode
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.sample import Sample
from lrkit.contract.scoring import answers_match, normalize_answer

_NOT = r"(?:not|no|never|neither|nor|except|isn't|isnt|aren't|wasn't|can't|cannot|rather than|instead of)"
_NOT_BEFORE = re.compile(rf"\b{_NOT}(?:\s+(?:a|an|the|be|is|in|option|choice|answer))*\s*[\"'(\[*]*$", re.IGNORECASE)
_TALE = r"(?:(?:correct|right|best|final)\s+)?(?:answer|option|choice)"
_SAID = re.compile(
    rf"(?i:\b{_TALE}\b\s*(?:is|was|would be|:|=|-)*\s*(?:{_TALE}\b\s*)?:?\s*[\"'*(\[]*)"
    r"([A-Z](?![\w'-])|[a-z](?=[\s\"'*)\].,;:!]*$))"
)
"""The answer is (B), correct option: B, answer = b. A small letter only at the end: else it may be a word."""
_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_CAPITAL = re.compile(r"(?<![\w'-])([A-Z])(?![\w'-])")
_WORDS = {LETTERS.index("A"), LETTERS.index("I")}
"""Letters that may be words, and so name no choice where nothing else tells that they are letters."""
_ALONE = re.compile(r"[\"'*(\[\s]*([A-Za-z])[\"'*)\]\s.:,;]*")
_LEADING = re.compile(r"[\"'*(\[\s]*([A-Z])\s*(?:[)\].:]+|\s-\s)\s*(?=\S)")
"""B. red, (B) red, B: red, B - red."""
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d{1,3})?(?![\w]|\.\d)", re.IGNORECASE)
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


_TAKEN_BACK = frozenset({-1, -2})
"""In place of a choice that is named to be ruled out."""


def choice_in(said: str, texts: Sequence[str]) -> int | None:
    """The index of the choice that a text names by its letter, as B, (b), B. red or The answer is B, or by its own
    words; None where it names none or several, or takes it back."""
    words = [normalize_answer(text) for text in texts]
    whole = normalize_answer(said)
    if words.count(whole) == 1:
        return words.index(whole)
    if (alone := _ALONE.fullmatch(said)) is not None:
        return _index(alone[1], len(texts))
    if (leading := _LEADING.match(said)) is not None:
        return _leading(leading[1], said[leading.end() :], words)
    if named := _named(_SAID, said, len(texts)):
        return _only(named)
    letters = _named(_CAPITAL, said, len(texts))
    if named := _named(_BRACKETS, said, len(texts)):
        return _only(named | letters)
    if named := _by_words(said, texts):  # before a bare letter, for "vitamin B" among vitamins
        return _only(named)
    return None if letters <= _WORDS else _only(letters)


def number_in(said: str) -> Decimal | None:
    """The one number in a text, as 7 in "$7.00" or "7 rooms"; None where there is none, or several."""
    plain = said.replace("\u2212", "-")
    found = {Decimal(one[0].replace(",", "")) for one in _NUMBER.finditer(plain)}
    return found.pop() if len(found) == 1 and not re.search(rf"\b{_NOT}\b", plain, re.IGNORECASE) else None


def yes_or_no_in(said: str) -> bool | None:
    """True for yes, False for no; None where a text says neither, or both."""
    found = {one[1].lower() for one in _YES_NO.finditer(said)}
    return found == {"yes"} if len(found) == 1 else None


def names_answer(said: str, reference: str) -> bool:
    """Whether an extracted answer is the reference of an open question: as `answers_match` has it, and where the
    reference is yes or no, or a number, whatever words stand around it."""
    if answers_match(said, reference):
        return True
    wanted = normalize_answer(reference)
    if wanted in ("yes", "no"):
        return yes_or_no_in(said) == (wanted == "yes")
    number = number_in(wanted) if _NUMBER.fullmatch(wanted) else None
    return number is not None and number_in(said) == number


def is_correct(spoken: str, reference: str, format: PromptFormat, mode: Mode = "cot") -> bool:
    """Whether a spoken text names the reference as its answer, where `PromptFormat.find_answer` finds it."""
    answer = format.find_answer(spoken, mode)
    return answer is not None and names_answer(answer, reference)


def says_right(answer: str | None, said: str, sample: Sample) -> bool:
    """Whether what was said is a sample's answer: names the same choice, or for an open question the same answer.
    `answer` is the part of `said` that `PromptFormat.find_answer` finds; where there is none, all of `said` may name a
    choice.

    Raises:
        DataError: the sample's answer is none of its choices.
    """
    if sample.choices:
        return choice_in(said if answer is None else answer, sample.choices) == index_of(sample.answer, sample.choices)
    return answer is not None and names_answer(answer, sample.answer)


def _index(name: str, count: int) -> int | None:
    place = LETTERS.find(name.upper())
    return place if 0 <= place < count else None


def _leading(name: str, behind: str, words: Sequence[str]) -> int | None:
    """A letter with a text behind it: none where the text is that of another choice, or names further ones."""
    index, text = _index(name, len(words)), normalize_answer(behind)
    others = {i for i, word in enumerate(words) if word and word == text} - {index}
    further = _named(_BRACKETS, behind, len(words)) | _named(_SAID, behind, len(words))
    return None if others or further - {index} else index


def _only(named: set[int]) -> int | None:
    return next(iter(named)) if len(named) == 1 else None


def _named(pattern: re.Pattern[str], said: str, count: int) -> set[int]:
    """Choices whose letters a pattern finds; `_TAKEN_BACK` too where one is, so that none stands alone."""
    found: set[int] = set()
    for one in pattern.finditer(said):
        index = _index(one[1], count)
        if index is not None:
            found |= _TAKEN_BACK if _NOT_BEFORE.search(said[: one.start(1)]) else {index}
    return found


def _by_words(said: str, texts: Sequence[str]) -> set[int]:
    """The choices whose words stand in a text; of such that overlap the longest."""
    left, found = " ".join(said.casefold().split()), set[int]()
    for index in sorted(range(len(texts)), key=lambda one: -len(texts[one])):
        word = " ".join(texts[index].casefold().split())
        pattern = re.compile(rf"(?<![\w.-]){re.escape(word)}(?![\w-]|\.\d)")
        for one in pattern.finditer(left):
            if _NOT_BEFORE.search(left[: one.start()]):
                return set(_TAKEN_BACK)
            found.add(index)
        left = pattern.sub("\0", left)
    return found
