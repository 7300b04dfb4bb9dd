"""The answer matcher accepts an answer and nothing that merely holds it; intervals and tests against known values."""

import math

import numpy as np
import pytest

from lrkit.contract.extract import is_correct
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.scoring import (
    accuracy,
    answers_match,
    compare_paired,
    normalize_answer,
    summarize,
    wilson_interval,
)

FORMAT = PromptFormat()

SAME = [
    ("7", "7"),
    ("7.", "7"),
    (" 7 ", "7"),
    ("7.0", "7"),
    ("07", "7"),
    ("1,000", "1000"),
    ("1e3", "1000"),
    ("0.50", ".5"),
    ("-0", "0"),
    ("\u22123", "-3"),
    ("Paris", "paris"),
    ("'Paris'.", "Paris"),
    ("**Paris**", "Paris"),
    ("the  blue bird", "The blue bird."),
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("B)", "B"),
    ("(B).", "B"),
    ("B: blue", "B"),
    ("(B) blue", "B"),
    ("B. blue", "B"),
    ("B", "(B) blue"),
    ("blue", "(B) blue"),
    ("(B) Blue.", "B: blue"),
    ("100%", "100%"),
    ("(K)", "K"),
    ("K. blue", "K"),
    ("(Z) blue", "Z"),
    ("K", "(K) blue"),
    ("blue", "(T) blue"),
    ("T: blue", "(T) Blue."),
    ("(C) 100 W.", "C"),
    ("(B) potassium (K)", "B"),
    ("(A) vitamins B and C", "A"),
    ("T. Rex", "T. rex"),
]

DIFFERENT = [
    ("17", "7"),
    ("7", "17"),
    ("not 7", "7"),
    ("7 or 3", "7"),
    ("room 7", "7"),
    ("7 3", "7"),
    ("-7", "7"),
    ("7.5", "7"),
    ("7%", "7"),
    ("1,00", "100"),
    ("", "7"),
    ("7", ""),
    ("", ""),
    ("...", "7"),
    ("A or B", "B"),
    ("A, B", "B"),
    ("(A) or (B)", "A"),
    ("A: not (B)", "A"),
    ("BA", "B"),
    ("Blue", "B"),
    ("A dog", "A"),
    ("B-52", "B"),
    ("A", "A.I."),
    ("A.I.", "A"),
    ("(A) blue", "(B) blue"),
    ("(B) red", "(B) blue"),
    ("C", "B"),
    ("no", "not"),
    ("yes, it is not", "yes"),
    ("unhappy", "happy"),
    ("Paris, Texas", "Paris"),
    ("the", "the blue bird"),
    ("(K) or (L)", "K"),
    ("K: not (L)", "K"),
    ("(K) blue or L. red", "K"),
    ("(A) or B", "A"),
    ("(K), (L)", "K"),
    ("K or L", "K"),
    ("L", "K"),
    ("(L) blue", "(K) blue"),
    ("T", "T. rex"),
    ("rex", "T. rex"),
    ("V", "V. cholerae"),
    ("I am", "I"),
    ("I think so", "I"),
    ("A", "A dog"),
    ("I", "I am"),
    ("X-ray", "X"),
    ("N America", "N"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_another_way_to_write_the_reference_is_right(answer: str, reference: str) -> None:
    assert answers_match(answer, reference)


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_an_answer_that_only_holds_or_resembles_the_reference_is_wrong(answer: str, reference: str) -> None:
    assert not answers_match(answer, reference)


@pytest.mark.parametrize(
    ("spoken", "right"),
    [
        ("Step 1: on to room 7. Answer: 7", True),
        ("Answer: 3 Answer: 7", True),
        ("Answer: 7 Answer: 3", False),
        ("Step 1: on to room 7. Answer: 3", False),
        ("Step 1: on to room 7", False),
        ("7", False),
        ("Answer:", False),
        ("", False),
    ],
)
def test_only_what_stands_after_the_last_marker_counts(spoken: str, right: bool) -> None:
    assert is_correct(spoken, "7", FORMAT) is right


def test_in_direct_mode_the_marker_was_given() -> None:
    assert is_correct("7", "7", FORMAT, "direct")
    assert not is_correct("3 7", "7", FORMAT, "direct")


@pytest.mark.parametrize(
    ("spoken", "right"),
    [("7", True), ("3 7", False), ("", False), ("Answer: 7", True), ("3 Answer: 7", True), ("7 Answer: 3", False)],
)
def test_after_latents_the_marker_may_be_missing(spoken: str, right: bool) -> None:
    assert is_correct(spoken, "7", FORMAT, "latent") is right


def test_normalisation_is_stable() -> None:
    for answer, reference in SAME + DIFFERENT:
        for text in (answer, reference):
            assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_wilson_interval_against_published_values() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_accuracy_of_nothing_is_unknown() -> None:
    assert accuracy([]).to_dict() == {"correct": 0, "total": 0, "value": None, "low": None, "high": None}
    assert accuracy([True, True, False, True]).value == 0.75


def test_mcnemar_is_exact() -> None:
    # 8 of 10 discordant pairs on one side: 2 * (1 + 10 + 45) / 1024.
    first = [True] * 8 + [False] * 2 + [True] * 30
    second = [False] * 8 + [True] * 2 + [True] * 30
    result = compare_paired(first, second)
    assert (result.only_first, result.only_second, result.total) == (8, 2, 40)
    assert result.p_value == pytest.approx(2 * 56 / 1024)
    assert result.difference == pytest.approx(6 / 40)


@pytest.mark.parametrize("discordant", [*range(41), 999, 1000])
def test_mcnemar_is_the_sum_of_whole_numbers(discordant: int) -> None:
    for only_first in range(0, discordant + 1, 1 if discordant < 41 else 83):
        result = compare_paired(
            [True] * only_first + [False] * (discordant - only_first) + [True],
            [False] * only_first + [True] * (discordant - only_first) + [True],
            num_resamples=1,
        )
        fewer = min(only_first, discordant - only_first)
        tail = sum(math.comb(discordant, index) for index in range(fewer + 1))
        assert result.p_value == pytest.approx(min(1.0, 2 * tail / 2**discordant), rel=1e-10)


@pytest.mark.parametrize("z", [0.5, 2.0, 5.0])
def test_mcnemar_of_a_million_pairs_is_that_of_the_normal_curve(z: float) -> None:
    """Whole numbers of a million digits would take hours here."""
    discordant = 10**6
    more = round(discordant / 2 + z * math.sqrt(discordant) / 2)
    first = np.arange(discordant) < more
    found = compare_paired(first.tolist(), (~first).tolist(), num_resamples=1).p_value
    between = (more - 0.5 - discordant / 2) / (math.sqrt(discordant) / 2)  # half a pair nearer, as bars are wide
    assert found == pytest.approx(math.erfc(between / math.sqrt(2)), rel=0.01)


def test_mcnemar_holds_for_thousands_of_pairs() -> None:
    even = compare_paired([True] * 3000 + [False] * 3000, [False] * 3000 + [True] * 3000)
    assert even.p_value == 1.0
    one_sided = compare_paired([True] * 3000, [False] * 3000)
    assert one_sided.p_value is not None
    assert one_sided.p_value < 1e-300
    assert (one_sided.low, one_sided.high) == (1.0, 1.0)


def test_the_bootstrap_interval_has_the_width_of_the_paired_difference() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(2000) < 0.8, rng.random(2000) < 0.7
    result = compare_paired(first.tolist(), second.tolist())
    pairs = first.astype(float) - second.astype(float)
    half = 1.96 * pairs.std() / np.sqrt(len(pairs))
    assert result.low == pytest.approx(pairs.mean() - half, abs=0.003)
    assert result.high == pytest.approx(pairs.mean() + half, abs=0.003)
    assert compare_paired(first.tolist(), second.tolist()) == result


def test_modes_of_different_samples_cannot_be_paired() -> None:
    assert compare_paired([], []).p_value is None
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_paired([True], [True, False])


def test_summary_statistics() -> None:
    summary = summarize(range(101))
    assert (summary.count, summary.mean, summary.median) == (101, 50.0, 50.0)
    assert (summary.p90, summary.p95, summary.p99) == (90.0, 95.0, 99.0)
    assert (summary.min, summary.max) == (0.0, 100.0)
    assert summary.stdev == pytest.approx(np.std(np.arange(101), ddof=1))
    assert summarize([3]).stdev is None
    assert summarize([]).to_dict() == dict.fromkeys(summary.to_dict()) | {"count": 0}
