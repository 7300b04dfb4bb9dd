"""GPTQ against an independent reference, its errors against plain rounding, and what it refuses; offsets of blocks."""

from pathlib import Path

import numpy as np
import pytest

from lrkit.contract.quantized import Quantized
from lrkit.contract.sample import Sample
from lrkit.contract.schemes import SCHEMES
from lrkit.errors import ExportError
from lrkit.export.calibration.calibrate import Calibrator
from lrkit.export.calibration.gather import CalibrationSet
from lrkit.export.calibration.sums import MOST_INPUTS, Sums, shares_of
from lrkit.export.targets.target import Target
from lrkit.export.weights.integers import dequantize_linear, matmul_nbits
from lrkit.export.weights.quantizers.gptq import solve
from lrkit.export.weights.quantizers.quantizer import Calibration, quantized, quantizer_of
from lrkit.export.weights.quantizers.rounded import quantize, quantize_with_offsets
from lrkit.export.weights.quantizers.searched import search

Array = np.ndarray


def matrix(rows: int = 12, width: int = 96, seed: int = 0, centre: float = 0.0) -> Array:
    return (np.random.default_rng(seed).standard_normal((rows, width)) + centre).astype(np.float32)


def inputs(tokens: int = 400, width: int = 96, seed: int = 1) -> Array:
    """Correlated, and of very different sizes."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, width)) @ (np.eye(width) + 0.3 * random.standard_normal((width, width)))
    return (mixed * np.geomspace(0.2, 5, width)).astype(np.float32)


def product_error(weight: Array, held: Quantized, seen: Array) -> float:
    return float(np.linalg.norm((held.dequantize() - weight) @ seen.T))


def by_least_squares(weight: Array, hessian: Array, order: Array, grid: Quantized, damping: float) -> Array:
    """What GPTQ stands for, column by column: those that are rounded stay, and all others are solved for again so that
    the product errs least. No inverse of the whole, and no errors that are handed on."""
    wide = hessian.astype(np.float64)
    wide += np.eye(len(wide)) * damping * np.diag(wide).mean()
    values, block = grid.scales, grid.block
    held = np.zeros(weight.shape)
    for place, column in enumerate(order):
        done, left = order[:place], order[place:]
        owed = (weight[:, done] - held[:, done]) @ wide[np.ix_(done, left)]
        best = weight[:, left] + owed @ np.linalg.inv(wide[np.ix_(left, left)])
        scale = values[:, column // block].astype(np.float64)
        zero = 0 if grid.zeros is None else grid.zeros[:, column // block]
        held[:, column] = (np.clip(np.rint(best[:, 0] / scale) + zero, -8, 7) - zero) * scale
    return held


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("offsets", [False, True])
def test_every_column_takes_over_the_errors_of_those_before_it(by_size: bool, offsets: bool) -> None:
    weight, hessian = matrix(5, 64), Calibration.of(inputs(width=64)).hessian
    made = solve(weight, hessian, 32, 4, offsets, by_size=by_size)
    order = np.argsort(-np.diag(hessian), kind="stable") if by_size else np.arange(64)
    reference = by_least_squares(weight, hessian, order, made, 0.01)
    same = np.isclose(made.dequantize(), reference, atol=1e-4)
    assert same.mean() > 0.99, "but for a tie or two"


@pytest.mark.parametrize("precision", ["int4", "int4-offsets", "int8"])
def test_each_method_errs_less_than_the_one_before(precision: str) -> None:
    weight, seen = matrix(centre=0.4), inputs()
    data, scheme = Calibration.of(seen), SCHEMES[precision]
    made = [quantizer_of(scheme, 32, method)(weight, "0.down", data) for method in ("rtn", "search", "gptq")]
    errors = [product_error(weight, one, seen) for one in made]
    assert errors[2] < 0.7 * errors[0] and errors[1] < errors[0]
    blind = quantizer_of(scheme, 32, "search")(weight, "0.down", None)
    assert np.linalg.norm(blind.dequantize() - weight) < np.linalg.norm(made[0].dequantize() - weight)
    assert (blind.scales > 0).all(), "TensorRT takes no others"


def test_offsets_serve_blocks_that_lie_off_zero() -> None:
    weight = matrix(centre=3.0)
    symmetric, own = quantize(weight, 32), quantize_with_offsets(weight, 32)
    assert own.zeros is not None and own.zeros.min() == -8, "all weights are above zero"
    assert np.linalg.norm(own.dequantize() - weight) < 0.8 * np.linalg.norm(symmetric.dequantize() - weight)
    shifted = search(weight, 32, 4, offsets=True)
    assert np.linalg.norm(shifted.dequantize() - weight) <= np.linalg.norm(own.dequantize() - weight)


@pytest.mark.parametrize("weight", [np.zeros((2, 64)), np.full((2, 64), 2.5), np.full((2, 64), -2.5)])
def test_even_blocks_have_offsets_too(weight: Array) -> None:
    made = quantize_with_offsets(weight.astype(np.float32), 32)
    np.testing.assert_allclose(made.dequantize(), weight, atol=1e-6)


@pytest.mark.parametrize("width", [64, 96])
def test_both_encodings_hold_the_same_offsets(width: int) -> None:
    """Three blocks a row fill one byte and a half."""
    made = quantize_with_offsets(matrix(6, width, centre=0.5), 32)
    blocks = width // 32
    packed, scales, zeros = matmul_nbits(made)
    low_first = np.stack([packed & 15, packed >> 4], -1).reshape(6, blocks, 32).astype(np.float32)
    points = zeros.reshape(6, -1)
    points = np.stack([points & 15, points >> 4], -1).reshape(6, -1)[:, :blocks].astype(np.float32)
    ort = ((low_first - points[..., None]) * scales.reshape(6, blocks, 1)).reshape(6, width)
    values, steps, offsets = (one.astype(np.float32) for one in dequantize_linear(made))
    standard = (values.reshape(blocks, 32, 6) - offsets[:, None]) * steps[:, None]
    np.testing.assert_array_equal(ort, standard.reshape(width, 6).T)
    np.testing.assert_array_equal(ort, made.dequantize())


def test_a_matrix_without_data_gets_searched_scales() -> None:
    made = quantized(matrix(), SCHEMES["int4"], 32, "vision.0", None, "gptq")
    assert made is not None
    np.testing.assert_array_equal(made.integers, search(matrix(), 32, 4, offsets=False).integers)


def test_columns_that_nothing_was_multiplied_with_are_rounded_all_the_same() -> None:
    seen = inputs()
    seen[:, 10:20] = 0
    made = solve(matrix(), Calibration.of(seen).hessian, 32, 4)
    assert np.isfinite(made.dequantize()).all()
    assert product_error(matrix(), made, seen) < product_error(matrix(), quantize(matrix(), 32), seen)


@pytest.mark.parametrize(
    ("hessian", "damping", "said"),
    [
        (np.full((96, 96), np.nan, np.float32), 0.01, "calibration of 3.out gave NaN or infinity; check the che"),
        (np.full((96, 96), np.inf, np.float32), 0.01, "calibration of 3.out gave NaN or infinity; check the che"),
        (np.ones((96, 96), np.float32), 0.0, "calibration of 3.out gave a matrix that has no inverse, even damped; "),
        (-np.eye(96, dtype=np.float32), 0.01, "calibration of 3.out gave a matrix that has no inverse, even damped"),
    ],
)  # fmt: skip
def test_a_hessian_of_no_use_is_one_sentence(hessian: Array, damping: float, said: str) -> None:
    with pytest.raises(ExportError) as refused:
        solve(matrix(), hessian, 32, 4, damping=damping, role="3.out")
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_phases_count_by_their_weights_and_not_by_their_tokens() -> None:
    import torch

    sums, prompt, speech = Sums(4), torch.randn(100, 4), torch.randn(3, 4)
    sums.add("prompt", prompt[:60])
    sums.add("prompt", prompt[60:].reshape(2, 20, 4))
    sums.add("speech", speech)
    found = sums.calibration({"prompt": 1.0, "latent": 5.0, "speech": 3.0})
    wanted = (prompt.T @ prompt / 100 + 3 * speech.T @ speech / 3) / 4
    np.testing.assert_allclose(found.hessian, wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert found.num_tokens == 103
    alone = sums.calibration({"prompt": 0.0, "latent": 1.0, "speech": 1.0}).hessian
    np.testing.assert_allclose(alone, (speech.T @ speech / 3).numpy(), rtol=1e-4, atol=1e-5)


def test_one_sum_of_all_phases_is_what_their_own_sums_come_to() -> None:
    """Later rounds know how many inputs a phase has, and hold a third of the memory."""
    import torch

    mix, prompt, latent = {"prompt": 1.0, "latent": 2.0, "speech": 0.0}, torch.randn(40, 4), torch.randn(7, 4)
    apart = Sums(4)
    together = Sums(4, shares_of(mix, {"prompt": 40, "latent": 7, "speech": 3}))
    for sums in (apart, together):
        sums.add("prompt", prompt)
        sums.add("latent", latent)
        sums.add("speech", torch.full((3, 4), 100.0))
    assert len(together.total) == 1 and len(apart.total) == 3
    wanted = apart.calibration(mix).hessian
    np.testing.assert_allclose(together.calibration(mix).hessian, wanted, rtol=1e-4, atol=1e-5)


def test_of_many_inputs_some_are_noted_from_all_over() -> None:
    import torch

    sums = Sums(2)
    sums.add("prompt", torch.eye(2).repeat_interleave(3 * MOST_INPUTS, 0))
    assert sums.count["prompt"] == MOST_INPUTS
    np.testing.assert_allclose(sums.calibration({"prompt": 1.0}).hessian, np.eye(2) / 2)


@pytest.mark.parametrize("given", [CalibrationSet("x.jsonl"), CalibrationSet("x.txt", (), ("", " \n"))])
def test_an_empty_set_is_refused_before_anything_is_loaded(given: CalibrationSet, tmp_path: Path) -> None:
    target = Target.model_validate({"precision": "int4", "int4": {"method": "gptq"}})
    with pytest.raises(ExportError, match=rf"the calibration set {given.name} is empty, and int4.method=gptq needs"):
        Calibrator(target, given, tmp_path / "never", "x")
    assert Calibrator(target, CalibrationSet("one", (Sample((), "Why?", (), ""),)), tmp_path, "x").report == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"precision": "int4", "int4": {"matrices": {"*.dwon": "int8"}}}, "fits no matrix of a layer; write LAYER.MA"),
        ({"precision": "int4", "int4": {"matrices": {"*.down": "in8"}}}, "int4.matrices.*.down is 'in8', and a matrix"),
        ({"precision": "int4", "int4": {"matrices": {"*.down": "w8a8"}}}, "int4.matrices.*.down is 'w8a8', and a m"),
        ({"precision": "fp32", "int4": {"matrices": {"*.down": "int8"}}}, "and precision fp32 has no scales by block"),
        ({"precision": "int4", "int4": {"method": "gpt"}}, "int4.method"),
        (
            {"precision": "int4-offsets", "dialect": "standard", "engine": {"kind": "tensorrt"}},
            "int4-offsets has an offset for each block, and TensorRT takes no zero point but 0",
        ),
        (
            {"precision": "int4", "provider": "tensorrt", "int4": {"matrices": {"0.*": "int4-offsets"}}},
            "int4-offsets has an offset for each block, and TensorRT takes no zero point but 0",
        ),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_said(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        Target.model_validate(values)
    assert said in str(refused.value)


def test_the_last_pattern_that_fits_counts() -> None:
    matrices = {"*.*": "int8", "0.*": "float", "*.down": "int4-offsets"}
    target = Target.model_validate({"precision": "int4", "int4": {"matrices": matrices}})
    held = {role: target.scheme_for(role, "layers") for role in ("0.qkv", "0.down", "3.qkv", "12.down")}
    assert {role: one.name if one else None for role, one in held.items()} == {
        "0.qkv": None, "0.down": "int4-offsets", "3.qkv": "int8", "12.down": "int4-offsets",
    }  # fmt: skip
    head = target.scheme_for("head", "head")
    assert head is not None and head.name == "int4"
