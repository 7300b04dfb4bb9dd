"""Says whether an answer is right, how sure an accuracy is, and whether two modes really differ. Torch-free.

Place in the pipeline: answer + reference -> `answers_match`, on which extract.py builds -> `accuracy` per mode ->
`compare_paired` between modes.

An answer counts only if it *is* the reference after normalisation of case, surrounding punctuation, numbers and
multiple-choice letters. Nothing is searched inside a longer text, because such a matcher would accept "not 7" for 7.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

import numpy as np

from lrkit.contract.choices import LETTERS, USUAL_LETTERS
from lrkit.summary import Summary, summarize

__all__ = [
    "Accuracy",
    "PairedComparison",
    "Summary",
    "accuracy",
    "answers_match",
    "compare_paired",
    "normalize_answer",
    "summarize",
    "wilson_interval",
]

_NEGLIGIBLE = 1e-18
"""Share of a sum below which a further term changes none of its digits."""
_SURROUNDING = " \t\n.,;:!?\"'`*_()[]{}<>\u2018\u2019\u201c\u201d"
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?")
_LETTER = f"[{LETTERS}]"
# A choice: a capital: "(B)", "B", "B.", "B)", "B:", or with its text "(B) blue", "B: blue", "B) blue", "B. red".
_CHOICE = re.compile(rf"(?:\(({_LETTER})\)\s*[:.]?\s*(.*)|({_LETTER})\s*(?:[:.)]\s*|([:).])\s+(.+)))", re.DOTALL)
# Another choice behind the first: a usual letter in brackets or with a mark; any letter that follows a joining word.
_JOINED = r"(?:\b(?:or|and|nor|not|but)\s+|[,/;]\s*)"
_OTHER_CHOICE = re.compile(
    rf"\([{USUAL_LETTERS}]\)|(?:^|\s)[{USUAL_LETTERS}][:.)](?:\s|$)"
    rf"|{_JOINED}(?:\({_LETTER}\)|{_LETTER}[:.)]\s+\S)|^{_JOINED}\(?{_LETTER}(?![\w'-])"
)
# "T. rex" is no choice T: no question of usual length has one.
_INITIAL = re.compile(rf"(?![{USUAL_LETTERS}]){_LETTER}\.\s+\S.*", re.DOTALL)
_Z95 = 1.959963984540054


def normalize_answer(text: str) -> str:
    """Lower case, single spaces, no punctuation around, one writing of numbers ("1,000.0" and "1e3" are "1000")."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    stripped = " ".join(text.split()).strip(_SURROUNDING)
    # ".5" loses its point to the stripping, so the number is looked for with it.
    for candidate in (" ".join(text.split()).rstrip(_SURROUNDING).lstrip(_SURROUNDING.replace(".", "")), stripped):
        if _NUMBER.fullmatch(candidate):
            number = Decimal(candidate.replace(",", ""))
            return "0" if number == 0 else f"{number.normalize():f}"
    return stripped


def answers_match(answer: str, reference: str) -> bool:
    """Whether an extracted answer says the reference and nothing else.

    If the reference is a multiple-choice letter, with or without its text, then the letter is enough; where both give a
    text, the texts must agree too.
    """
    wanted = normalize_answer(reference)
    if not wanted:
        return False
    if normalize_answer(answer) == wanted:
        return True
    expected, said = _choice(reference), _choice(answer)
    if expected is None or _INITIAL.fullmatch(reference.strip()):
        return False
    letter, text, _ = expected
    if said is None:
        return bool(text) and normalize_answer(answer) in (text, letter.casefold())
    said_letter, said_text, hedged = said
    if said_letter != letter or hedged:
        return False
    return not text or not said_text or text == said_text


def _choice(text: str) -> tuple[str, str, bool] | None:
    """(letter, normalised text behind it, whether another choice is named too); None if `text` is no such choice."""
    match = _CHOICE.fullmatch(text.strip().strip("\"'`*"))
    if match is None:
        bare = text.strip().rstrip(".,;:!")
        return (bare, "", False) if re.fullmatch(_LETTER, bare) else None
    letter = match[1] or match[3]
    behind = match[2] or match[5] or ""
    return letter, normalize_answer(behind), bool(_OTHER_CHOICE.search(behind))


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95% Wilson interval; None where nothing was asked."""

    correct: int
    total: int
    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """For a JSON report; unknown is null."""
        return asdict(self)


def accuracy(correct: Sequence[bool]) -> Accuracy:
    """Share of True, with its 95% Wilson interval."""
    total, right = len(correct), sum(map(bool, correct))
    if total == 0:
        return Accuracy(0, 0, None, None, None)
    return Accuracy(right, total, right / total, *wilson_interval(right, total))


def wilson_interval(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson, 1927) of `total` > 0; `z` 1.96 makes it a 95% interval."""
    share = correct / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0% and 100% the bound is exactly 0 or 1; rounding must not leave it a hair beside.
    low = 0.0 if correct == 0 else (middle - spread) / scale
    high = 1.0 if correct == total else (middle + spread) / scale
    return low, high


@dataclass(frozen=True)
class PairedComparison:
    """Two modes on the same samples."""

    total: int
    only_first: int
    """Samples that only the first mode got right."""
    only_second: int
    """Samples that only the second mode got right."""
    difference: float | None
    """Accuracy of the first minus that of the second; None without samples."""
    low: float | None
    """Lower end of the bootstrap 95% interval of the difference."""
    high: float | None
    """Upper end of it."""
    p_value: float | None
    """Exact two-sided McNemar test that both are equally often right."""

    def to_dict(self) -> dict[str, float | int | None]:
        """For a JSON report; unknown is null."""
        return asdict(self)


def compare_paired(
    first: Sequence[bool], second: Sequence[bool], seed: int = 0, num_resamples: int = 10_000
) -> PairedComparison:
    """Compare two modes by their right (True) and wrong answers to the same samples, in the same order.

    The bootstrap draws samples, not answers: it keeps pairs together (percentile interval). Where no sample tells the
    two modes apart, the interval is what so few samples can rule out.
    """
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} answers cannot be paired; score both modes on the same samples"
        )
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    total, only_first, only_second = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    if total == 0:
        return PairedComparison(0, 0, 0, None, None, None, None)
    # Drawing n pairs with replacement is a multinomial draw over the three kinds of pair.
    shares = np.array([only_first, only_second, total - only_first - only_second]) / total
    draws = np.random.default_rng(seed).multinomial(total, shares, size=num_resamples)
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / total, (2.5, 97.5))
    if only_first == only_second == 0:
        # Resampling equal pairs would give an interval of no width; instead the largest share of differing samples that
        # shows none among `total` in one of twenty cases.
        high = 1 - 0.05 ** (1 / total)
        low = -high
    difference = (only_first - only_second) / total
    p_value = _mcnemar_p(only_first, only_second)
    return PairedComparison(total, only_first, only_second, difference, float(low), float(high), p_value)


def _mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided binomial test of the discordant pairs against a fair coin: exact but for rounding.

    From the largest term of the tail down, each is a share of the one before, until none counts any more. So a million
    discordant pairs take some thousand steps.
    """
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    terms, term = 0.0, 1.0
    for index in range(fewer, -1, -1):
        terms += term
        term *= index / (discordant - index + 1)
        if term < terms * _NEGLIGIBLE:
            break
    log_choices = math.lgamma(discordant + 1) - math.lgamma(fewer + 1) - math.lgamma(discordant - fewer + 1)
    return min(1.0, 2 * terms * math.exp(log_choices - discordant * math.log(2)))
