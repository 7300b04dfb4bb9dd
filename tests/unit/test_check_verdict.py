"""What an export's comparison with torch proves, and that one which proves nothing does not pass.

The tale behind: an int4 export of a model without right answers passed with not one answer equal, because only the
loss of right answers was bounded, and there was none to lose.
"""

import math

import pytest

from lrkit.contract.bundle.io_spec import IoSpec
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.schemes import SCHEMES
from lrkit.errors import CheckpointError, ExportError
from lrkit.export.check import torch_answers
from lrkit.export.check_verdict import MIN_RIGHT, Found, judge
from lrkit.export.sessions import open_program
from tests.bundles import processor

INT4 = SCHEMES["int4"].tolerance


def found(off: float = 0.1, same: float = 1.0, torch: int = 0, program: int = 0, answers: int = 0, samples: int = 100):
    first = {} if same == 1 else {"spoken tokens": "sample 3: [5] where torch has [6]"}
    return Found(
        logits=[0.0, off, 0.0], states=[off / 2], first=first,
        same={"spoken tokens": round(same * samples)}, right={"torch": torch, "program": program},
        num_samples=samples, num_answers=answers,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "proof"),
    [
        (found(off=0.6, same=0.4, torch=60, program=58, answers=100), "answers"),
        (found(off=0.6, same=0.4, torch=MIN_RIGHT, program=MIN_RIGHT, answers=100), "answers"),
        (found(off=0.2, same=0.6), "numbers"),
        (found(off=0.2, same=0.6, torch=2, program=2, answers=2, samples=2), "numbers"),
        (found(off=0.2, same=0.6, torch=MIN_RIGHT - 1, program=MIN_RIGHT - 1, answers=100), "numbers"),
    ],
)
def test_int4_is_proven_by_right_answers_or_else_by_numbers(seen, proof):
    validation = judge(seen, INT4, "latent")
    assert validation.passed and validation.measured["proof"] == proof
    assert ("numbers" in validation.tolerance) == (proof == "numbers")


@pytest.mark.parametrize(
    "seen",
    [
        found(off=0.2, same=0.0),
        found(off=0.2, same=0.0, answers=100),
        found(off=1.3, same=1.0),
        found(off=math.nan, same=1.0),
        found(off=0.9, same=0.0, torch=2, program=2, answers=100),
        found(off=0.0, same=1.0, samples=0),
    ],
)
def test_int4_without_right_answers_needs_equal_ones(seen):
    with pytest.raises(
        ExportError, match=r"^nothing proves the cot program: torch has \d+ right answers on"
    ) as refused:
        judge(seen, INT4, "cot")
    assert "--allow-unproven" in str(refused.value) and "\n" not in str(refused.value)
    allowed = judge(seen, INT4, "cot", allow_unproven=True)
    assert (
        not allowed.passed and allowed.measured["proof"] == "none" and "NOTHING IS PROVEN" in allowed.tolerance_reason
    )


def test_lost_answers_are_never_allowed():
    for seen in (found(torch=60, program=50, answers=100), found(torch=10, program=0, answers=10, samples=10)):
        with pytest.raises(ExportError, match=r"latent program differs .* right answers \d+ of \d+, torch \d+"):
            judge(seen, INT4, "latent", allow_unproven=True)


@pytest.mark.parametrize(("off", "same", "passes"), [(0.02, 0.0, True), (0.2, 1.0, False), (math.nan, 1.0, False)])
def test_random_weights_are_compared_with_what_the_integers_stand_for(off, same, passes):
    seen = found(off=off, same=same, samples=1)
    if passes:
        assert judge(seen, INT4, "latent", rounded=True).measured["proof"] == "numbers"
    else:
        with pytest.raises(ExportError, match="differs from torch"):
            judge(seen, INT4, "latent", rounded=True, allow_unproven=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_exact_programs_are_proven_by_few_samples(precision):
    assert judge(found(off=1e-5, samples=1), SCHEMES[precision].tolerance, "latent").measured["proof"] == "numbers"
    for seen in (found(off=0.3), found(off=1e-5, same=0.5), found(off=math.nan), found(off=0.0, samples=0)):
        with pytest.raises(ExportError, match="latent program differs from torch") as refused:
            judge(seen, SCHEMES[precision].tolerance, "latent", allow_unproven=True)
        assert "\n" not in str(refused.value)


def test_a_number_that_is_none_is_seen_wherever_it_stands():
    for numbers in ([math.nan, 0.1], [0.1, math.nan], [0.1, math.nan, 0.2]):
        assert math.isnan(Found(logits=numbers).off)


def test_what_onnx_runtime_says_is_one_sentence(tmp_path):
    (tmp_path / "latent.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"^ONNX Runtime cannot load latent.onnx .*; free memory") as refused:
        open_program(tmp_path / "latent.onnx", IoSpec(form="program", inputs=(), outputs=()))
    assert "\n" not in str(refused.value)


def test_what_torch_says_is_one_sentence():
    bounds = Limits(max_prompt_tokens=9, max_patches=9, max_images=1, max_latent_steps=1, max_new_tokens=1)

    def unfit():
        raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch for x")

    with pytest.raises(ExportError, match=r"with the cot model \(Error\(s\) in loading state_dict: size mismatch"):
        torch_answers(unfit, processor(), [], "cot", bounds)

    def gone():
        raise CheckpointError("b: is no checkpoint; copy it again")

    with pytest.raises(CheckpointError, match=r"^b: is no checkpoint; copy it again$"):
        torch_answers(gone, processor(), [], "cot", bounds)
