"""Errors by phase: equal models have none, a phase that is broken shows, and words are held against the same words."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.quantized import Quantized
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.export.calibration.gather import CalibrationSet
from lrkit.export.calibration.sums import PHASES
from lrkit.export.phases.answers import Answered, answers
from lrkit.export.phases.comparing import compare
from lrkit.export.phases.phase_errors import Errors, off
from lrkit.export.phases.quantization_page import render
from lrkit.export.phases.rounding import Held, hessians, round_weights
from lrkit.export.targets.target import Target
from lrkit.runtime.encode.processor import EncodedPrompt
from tests.bundles import processor
from tests.tiny import tiny_reasoner

SETTINGS = ReasonerSettings.model_validate(
    {"think": {"max_latent_steps": 3, "halting": "fixed"}, "replay": {"num_tokens": 2}}
)
LIMITS = Limits(max_prompt_tokens=200, max_patches=400, max_images=2, max_latent_steps=8, max_new_tokens=3)
SAMPLES = trail_set("main", "test", 2)


@cache
def prompts() -> tuple[EncodedPrompt, ...]:
    return tuple(processor().encode_prompt(one.images, one.question) for one in SAMPLES)


def held(**int4: object) -> Held:
    target = Target.model_validate({"precision": "int4", "int4": {"block": 32, **int4}})
    return Held.of(tiny_reasoner(SETTINGS), target)


def asked(one: Held, expected: list[Answered] | None = None, layers: bool = False) -> list[Answered]:
    words = None if expected is None else [row.words for row in expected]
    return answers(one.reasoner, processor(), prompts(), "latent", LIMITS, words, layers)


@cache
def exact() -> tuple[Answered, ...]:
    return tuple(asked(held(), None, layers=True))


def errors_of(one: Held) -> dict[str, Any]:
    right = [sample.answer for sample in SAMPLES]
    return dict(compare(processor(), "latent", exact(), asked(one, list(exact()), layers=True), right))


def test_the_same_model_has_no_errors() -> None:
    found = errors_of(held())
    assert list(found["phases"]) == [
        "prompt.last", "prompt.tokens", "latent.1", "latent.2", "latent.3", "latent.last", "speech"
    ]  # fmt: skip
    assert all(one == {"mean": 0.0, "largest": 0.0, "samples": 2} for one in found["phases"].values())
    assert set(found["agreement"].values()) == {1.0}
    assert found["perplexity"]["float"] == found["perplexity"]["rounded"] > 1
    assert {phase: len(errors) for phase, errors in found["layers"].items()} == dict.fromkeys(
        ("prompt.last", "latent.1", "latent.2", "latent.3", "speech"), 4
    )


def test_a_broken_latent_phase_shows_from_there_on() -> None:
    broken = held()
    with torch.no_grad():
        broken.reasoner.latent.norm *= 3
    found = errors_of(broken)["phases"]
    assert found["prompt.tokens"]["largest"] == 0.0 == found["prompt.last"]["largest"]
    assert all(found[phase]["mean"] > 0.05 for phase in ("latent.1", "latent.3", "latent.last", "speech"))


def test_corrupted_integers_show_behind_their_layer() -> None:
    rounded, corrupted = held(), held()
    made = round_weights(rounded)
    round_weights(corrupted)
    (matrix,) = [one for one in corrupted.all() if one.role == "2.down"]
    corrupted.hold(matrix, Quantized(-made.integers["2.down"].integers.clip(-7), made.integers["2.down"].scales, 4))
    usual, found = errors_of(rounded), errors_of(corrupted)
    assert all(found["phases"][phase]["mean"] > usual["phases"][phase]["mean"] for phase in ("prompt.last", "speech"))
    before, behind = (np.subtract(found["layers"]["prompt.last"], usual["layers"]["prompt.last"])[at] for at in (1, 2))
    assert before == 0.0 < behind
    assert found["perplexity"]["rounded"] != usual["perplexity"]["rounded"]


def test_words_in_one_pass_are_what_they_are_one_by_one() -> None:
    """The states of forced words are those of an answer that says them itself."""
    (one, *_) = exact()
    alone = answers(held().reasoner, processor(), prompts()[:1], "latent", LIMITS, [one.words])[0]
    np.testing.assert_allclose(alone.states["speech"], one.states["speech"], atol=2e-5)
    assert len(one.lost) == len(one.words) == len(one.states["speech"])
    assert one.words[: len(one.said.token_ids)] == one.said.token_ids


def test_the_head_and_the_embedding_part_where_they_were_one_matrix() -> None:
    rounded = held()
    before = rounded.reasoner.backbone.embedding_rows().clone()
    made = round_weights(rounded)
    head, rows = rounded.reasoner.backbone.head_rows(), rounded.reasoner.backbone.embedding_rows()
    np.testing.assert_allclose(head.detach().numpy(), made.integers["head"].dequantize())
    assert not torch.equal(head, rows) and 0 < float((rows - before).abs().max()) < 0.02, "the embedding has 8 bits"


@pytest.mark.long
def test_fewer_bits_err_more_and_calibration_errs_less() -> None:
    given = CalibrationSet("x", trail_set("main", "train", 2))
    sums = hessians(held(method="gptq"), processor(), "latent", LIMITS, given)
    found = {}
    for name, bits, data in (("rtn", 4, None), ("rtn", 3, None), ("gptq", 3, sums)):
        one = held(method=name)
        made = round_weights(one, bits, data, dict.fromkeys(PHASES, 1.0))
        assert int(made.integers["0.qkv"].integers.max()) == (3 if bits == 3 else 7)
        found[name, bits] = errors_of(one)["phases"]["prompt.tokens"]["mean"]
    assert found["rtn", 4] < found["rtn", 3] and found["gptq", 3] < found["rtn", 3]


def test_a_pruned_prompt_is_compared_at_its_last_token_alone() -> None:
    settings = {**SETTINGS.model_dump(), "prune": {"after_layer": 1}}
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(settings))
    (one, *_) = answers(reasoner, processor(), prompts()[:1], "latent", LIMITS, layers=True)
    assert set(one.states) == {"prompt.last", "latent.1", "latent.2", "latent.3", "speech"} and one.layers == {}


def test_the_error_is_relative_and_a_number_that_is_none_is_the_largest() -> None:
    assert off(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 3.0], [0.0, 1.0]])) == pytest.approx(
        (1 / 18**0.5 + 1) / 2
    )
    errors = Errors()
    errors.add("latent.10", np.ones(2), np.ones(2))
    errors.add("latent.2", np.array([np.nan, 1.0]), np.ones(2))
    errors.add("speech", np.ones((3, 2)), np.ones((2, 2)))
    assert list(errors.summary()) == ["latent.2", "latent.10"]
    assert errors.summary()["latent.2"] == {"mean": None, "largest": None, "samples": 1}


def test_a_comparison_is_a_page() -> None:
    row = {"checkpoint": "tiny", "set": "x", "samples": 3, "bits": 4, "block": 32, "way": "rtn", **errors_of(held())}
    page = render({"rows": [row], "calibration": {"set": "x", "samples": 4, "half": "train"}})
    assert "| tiny | x | 4 | rtn | 0.0000 | 0.0000 | 0.0000 | 0.0000 | 0.0000 |" in page
