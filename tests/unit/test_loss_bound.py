"""--max-loss: how many samples a bound needs, what is refused before an export begins, and what is judged after it."""

import numpy as np
import pytest

from lrkit.contract.sample import Sample
from lrkit.contract.schemes import SCHEMES
from lrkit.errors import ExportError, UserError
from lrkit.export.check import Trace, _compare
from lrkit.export.check_verdict import Found, judge
from lrkit.export.loss_bound import check_points, enough, judge_loss, needed, paired
from tests.commands import lrkit


def answered(count: int, without: int = 0) -> list[Sample]:
    return [Sample((), "Why?", (), "so")] * count + [Sample((), "Why?", (), "")] * without


def right(both: int, torch: int = 0, program: int = 0, none: int = 0) -> list[tuple[bool, bool]]:
    return [(True, True)] * both + [(True, False)] * torch + [(False, True)] * program + [(False, False)] * none


@pytest.mark.parametrize(("points", "count"), [(0.5, 598), (1.0, 299), (5.0, 59), (50.0, 5), (100.0, 1)])
def test_a_set_must_be_able_to_show_the_loss(points: float, count: int) -> None:
    """Were the loss just over the bound, no lost answer at all would be seen in one of twenty sets."""
    assert needed(points) == count
    assert points == 100 or (1 - points / 100) ** count <= 0.05 < (1 - points / 100) ** (count - 1)
    enough(points, answered(count))
    with pytest.raises(ExportError) as refused:
        enough(points, answered(count - 1, without=1000))
    assert str(refused.value) == (
        f"--max-loss {points:g} needs {count} samples with answers to see such a loss, and {count - 1} were given; "
        "give more (--data, --samples), allow a larger loss, or leave --max-loss out"
    )


def test_without_a_bound_any_set_will_do() -> None:
    enough(None, [])


def test_gained_answers_count_against_lost_ones() -> None:
    pairs = right(590, torch=5, program=2, none=3)
    assert paired(pairs)["points"] == 0.5 and paired(pairs)["low"] < 0.5 < paired(pairs)["high"]
    judge_loss(pairs, 0.5, "latent")
    with pytest.raises(ExportError) as refused:
        judge_loss(right(590, torch=6, program=2, none=2), 0.5, "latent")
    said = str(refused.value)
    assert said.startswith(
        "the latent program loses 0.67 points of accuracy, where --max-loss allows 0.5: of 600 answers"
    )
    assert "596 are right in torch and 592 in the program" in said and "\n" not in said


def test_a_model_that_knows_nothing_has_nothing_to_lose() -> None:
    with pytest.raises(
        ExportError, match=r"torch's cot model answers 3 of 600 samples right, so no program could lose"
    ):
        judge_loss(right(3, none=597), 0.5, "cot")


@pytest.mark.parametrize("points", [float("nan"), float("inf"), -1.0, 0.0, 100.1])
def test_a_bound_that_is_none_is_one_sentence(points: float) -> None:
    with pytest.raises(UserError, match=r"^--max-loss is .*give points of accuracy, more than 0 and at most 100"):
        check_points(points)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["tiny", "--int4", "--samples", "100", "--max-loss", "0.5"], "needs 598 samples with answers to see"),
        (["tiny", "--max-loss", "nan"], "--max-loss is nan; give points of accuracy"),
        (["random:qwen2-vl-2b", "--max-loss", "1"], "and random weights have no right answers to lose; leave it out"),
        (["tiny", "--max-loss", "0.0001"], "needs 2,995,731 samples to be seen, and at most 100,000 are compared"),
    ],
)  # fmt: skip
def test_the_verb_refuses_before_it_exports(options: list[str], said: str, capsys, tmp_path) -> None:
    assert lrkit("export", *options, "-o", tmp_path / "never") == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "never").exists()


def trace(states: np.ndarray, words: list[int]) -> Trace:
    return Trace(words, len(states), "decided", np.arange(5.0), states, [[] for _ in states], {})


def test_the_record_has_the_errors_by_phase() -> None:
    """Integers of one matrix may break what latents feed back, and leave the prompt as it is."""
    states = np.array([[3.0, 4.0], [0.0, 2.0]])
    found = Found(num_samples=2)
    _compare(found, 0, trace(states, [7, 8, 9, 2]), trace(states + np.array([[0, 0], [0, 1]]), [7, 8, 1, 2]))
    _compare(found, 1, trace(states[:1], [7]), trace(states[:1], [7]))
    found.paired = right(1, torch=1)
    measured = judge(found, SCHEMES["int4"].tolerance, "latent", rounded=False, allow_unproven=True).measured
    phases = measured["phases"]
    assert isinstance(phases, dict)
    assert list(phases) == ["norm", "prompt.logits", "latent.1", "latent.2", "latent.last", "speech"]
    assert phases["prompt.logits"] == phases["latent.1"] == {"mean": 0.0, "largest": 0.0, "samples": 2}
    assert phases["latent.2"] == {"mean": 0.5, "largest": 0.5, "samples": 1}
    assert phases["latent.last"] == {"mean": 0.25, "largest": 0.5, "samples": 2}
    assert phases["speech"] == {"words_alike": 0.75, "samples": 2}
    assert isinstance(measured["lost"], dict) and measured["lost"]["points"] == 50.0
