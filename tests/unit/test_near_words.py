"""A word that torch prefers by less than a program's numbers are exact is no other answer.

The tale behind: random weights in float16 spoke other words than torch on one CPU, and the same words on another.
"""

import math

import numpy as np
import pytest
import torch

from lrkit.contract.schemes import SCHEMES
from lrkit.errors import ExportError
from lrkit.export.check import Trace, _compare, _compare_behind
from lrkit.export.check_verdict import TIE, Found, judge
from lrkit.export.near_words import KEPT, BestWords, best_words, margin

LATENT = 3
END = 0


def step(first: int, second: int, apart: float) -> BestWords:
    """Two words, the second less by a part of the best one's logit, which is 10."""
    return BestWords([first, second], [10.0, 10.0 * (1 - apart)])


BEST = [step(7, 8, 0.5), step(8, 5, 0.004), step(9, END, 0.01)]


@pytest.mark.parametrize(
    ("said", "apart"),
    [
        ([7, 8], 0.0),
        ([7, 5, 1, 1], 0.004),
        ([8, 8], 0.5),
        ([7, 8, 9], 0.01),
        ([7], math.inf),
        ([7, 6], math.inf),
        ([], math.inf),
    ],
)
def test_the_margin_is_of_the_first_word_that_differs(said: list[int], apart: float) -> None:
    assert margin(BEST, [7, 8], said, [7, 8], (END, 99)) == pytest.approx(apart)


def test_the_best_words_leave_out_the_latent_token() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 9.0, *range(-20, 0)], [1.0, 2.0, 3.0, 4.0, *range(-20, 0)]])
    first, second = best_words(logits, LATENT)
    assert (first.ids[:3], first.logits[:3]) == ([1, 2, 0], [5.0, 4.0, 0.0]) and len(first.ids) == KEPT
    assert second.ids[0] == 2 and LATENT not in [*first.ids, *second.ids]


def trace(words: list[int], logits: np.ndarray, steps: int = 1) -> Trace:
    states = np.ones((steps, 2))
    return Trace(words, steps, "decided", logits, states, [[] for _ in states], {}, best=list(BEST))


def found(said: list[int], off: float, steps: int = 1) -> Found:
    """One sample, whose numbers are `off`."""
    one, logits = Found(num_samples=1), np.array([10.0, 1.0])
    _compare(one, 0, trace([7, 8], logits, 1), trace(said, logits + off * 10, steps), (END,))
    return one


@pytest.mark.parametrize(
    ("said", "off", "steps", "passes"),
    [
        ([7, 5], 0.003, 1, True),  # torch holds them 0.004 apart, and each may be 0.003 off
        ([7, 5], 0.001, 1, False),
        ([8, 8], 0.049, 1, False),  # 0.5 apart
        ([7, 5], 0.003, 2, False),  # torch spoke behind one latent step
        ([7, 8, 9], 0.006, 1, True),
    ],
)  # fmt: skip
def test_float16_may_part_at_a_tie_alone(said: list[int], off: float, steps: int, passes: bool) -> None:
    one = found(said, off, steps)
    assert one.agreement["spoken tokens"] == 0.0
    if passes:
        measured = judge(one, SCHEMES["fp16"].tolerance, "latent").measured
        assert measured["ties"] == 1 and measured["agreement"]["spoken tokens"] == 0.0
        return
    with pytest.raises(ExportError, match="0% of the spoken answers are equal"):
        judge(one, SCHEMES["fp16"].tolerance, "latent")


def test_float32_has_no_ties_and_no_margin_is_wider_than_a_tie() -> None:
    with pytest.raises(ExportError, match=r"0% of the spoken answers are equal, 1 part at a tie"):
        judge(found([7, 5], 0.00009 * 30), SCHEMES["fp32"].tolerance, "latent")
    assert Found(logits=[0.2], apart=[TIE * 1.01, TIE], num_samples=2).ties == 1
    assert Found(logits=[math.nan], apart=[0.0], num_samples=1).ties == 0


@pytest.mark.parametrize(
    ("whole", "asked", "off", "passes"),
    [
        ([7, 8], [7, 5], 0.003, True),
        ([7, 5], [7, 8], 0.003, True),  # torch says the other one
        ([7, 8], [7, 5], 0.001, False),
        ([8, 9], [8, 4], 0.003, False),  # torch never stood there
    ],
)
def test_an_answer_behind_a_look_may_part_at_a_tie_too(
    whole: list[int], asked: list[int], off: float, passes: bool
) -> None:
    logits = np.array([10.0, 1.0])
    one = found([7, 8], 0.0)
    _compare_behind(one, 0, trace([7, 8], logits), (trace(whole, logits), trace(asked, logits + off * 10)), (END,))
    if passes:
        scenes = judge(one, SCHEMES["fp16"].tolerance, "latent").measured["scenes"]
        assert (scenes["agreement"], scenes["ties"]) == (0.0, 1)
        return
    with pytest.raises(ExportError, match="0% of the answers are the same, first in sample 0, token_ids"):
        judge(one, SCHEMES["fp16"].tolerance, "latent")
