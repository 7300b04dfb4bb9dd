"""Weights as floats of eight and four bits: values as published formats have them, written as TensorRT reads them."""

import ml_dtypes
import numpy as np
import pytest
from pydantic import ValidationError

from lrkit.contract.schemes import SCHEMES
from lrkit.errors import ExportError
from lrkit.export.before import Bounds, look_ahead
from lrkit.export.calibration.sensitive import KeepSensitive
from lrkit.export.subject import CheckpointSubject
from lrkit.export.targets.target import Target
from lrkit.export.tensorrt.jobs import check_programs
from lrkit.export.weights.integers import by_row, dequantize_linear, error_of
from lrkit.export.weights.quantizers.quantizer import quantized
from lrkit.resources import resolve_checkpoint

STANDARD = {"dialect": "standard"}
E2M1 = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}


def matrix(rows: int = 48, width: int = 64) -> np.ndarray:
    size = np.exp(np.random.default_rng(1).standard_normal((rows, 1)) * 2)
    return (np.random.default_rng(0).standard_normal((rows, width)) * size).astype(np.float32)


def test_floats_of_eight_bits_have_one_scale_for_each_row() -> None:
    weight = matrix()
    made = quantized(weight, SCHEMES["fp8"], 128, "0.qkv")
    assert made is not None and made.scales.shape == (48, 1)
    np.testing.assert_allclose(np.abs(made.dequantize()).max(1), np.abs(weight).max(1), rtol=1e-6)
    away = np.abs(made.dequantize() - weight) / np.maximum(np.abs(weight), np.abs(weight).max(1, keepdims=True) / 2**12)
    assert away.max() <= 1 / 16 + 1e-6, "three bits behind the point"
    values, scales = by_row(made)
    np.testing.assert_array_equal((values.astype(np.float32) * scales).T, made.dequantize())
    assert values.dtype == ml_dtypes.float8_e4m3fn


def test_floats_of_four_bits_have_scales_of_eight_bits_and_one_number_for_all() -> None:
    weight = matrix()
    weight[3, 16:32] = 0
    made = quantized(weight, SCHEMES["nvfp4"], 16, "0.qkv")
    assert made is not None and made.scales.shape == (48, 4)
    values, scales, unit = dequantize_linear(made)
    assert values.dtype == ml_dtypes.float4_e2m1fn and scales.dtype == ml_dtypes.float8_e4m3fn and unit.shape == ()
    assert {abs(float(one)) for one in np.unique(values.astype(np.float32))} <= E2M1
    held = values.astype(np.float32).reshape(4, 16, 48) * (scales.astype(np.float32) * unit)[:, None]
    np.testing.assert_allclose(held.reshape(64, 48).T, made.dequantize(), rtol=1e-6)
    assert (made.dequantize()[3, 16:32] == 0).all()
    assert error_of(weight, made) < 0.12


def test_a_matrix_of_zeros_stays_one() -> None:
    for name in ("fp8", "nvfp4"):
        made = quantized(np.zeros((4, 32), np.float32), SCHEMES[name], 16, "0.qkv")
        assert made is not None and (made.dequantize() == 0).all() and np.isfinite(made.scales).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"precision": "fp8"}, "precision fp8 has no operator in the dialect ort; set dialect=standard"),
        ({"precision": "fp8", **STANDARD, "openvino": {}}, "OpenVINO does not read them"),
        ({"precision": "nvfp4", **STANDARD, "int4": {"method": "gptq"}}, "are rounded to the nearest"),
        ({"precision": "int4", **STANDARD, "int4": {"matrices": {"*.down": "nvfp4"}}}, "a matrix can be int4, int8"),
        ({"precision": "nvfp4", **STANDARD, "int4": {"block": 32}}, "int4.block is 32"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_the_target(values: dict, said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Target.model_validate(values)
    assert said in str(raised.value)


def test_no_bundle_of_four_bit_floats_appears_as_if_it_were_proven() -> None:
    """No engine reads them on a CPU, where programs are compared with torch."""
    target = Target.model_validate({"precision": "nvfp4", **STANDARD})
    subject = CheckpointSubject(resolve_checkpoint("tiny"))
    with pytest.raises(ExportError, match="no engine reads nvfp4 on a CPU"):
        look_ahead(subject, target, [], Bounds(False), KeepSensitive(1), lambda text: None)
    look_ahead(subject, target, [], Bounds(True), KeepSensitive(1), lambda text: None)


@pytest.mark.parametrize(("precision", "least"), [("fp8", 89), ("nvfp4", 100)])
def test_gpus_that_cannot_multiply_by_them_are_named(precision: str, least: int, bundle) -> None:
    from lrkit.contract.bundle.bundle_folder import open_bundle

    entry = next(iter(open_bundle(bundle).manifest.programs.values()))
    entry = entry.model_copy(update={"dialect": "standard", "precision": precision})
    with pytest.raises(ExportError, match=f"from sm{least} on; leave sm86 out"):
        check_programs({"latent": entry}, ("sm86", "sm120"))
    check_programs({"latent": entry}, ("sm120",))


@pytest.mark.parametrize(
    ("values", "slow"),
    [
        ({"precision": "int8", "int4": {"accuracy_level": 0}}, True),
        ({"precision": "int4", "int4": {"accuracy_level": 1, "head": "int8"}}, True),
        ({"precision": "int4", "int4": {"accuracy_level": 1, "matrices": {"*.down": "int8"}}}, True),
        ({"precision": "int4", "int4": {"accuracy_level": 0}}, False),
        ({"precision": "int8", "int4": {"accuracy_level": 4}}, False),
        ({"precision": "int8", "int4": {"accuracy_level": 0}, **STANDARD}, False),
    ],
)
def test_integers_of_eight_bits_are_slow_in_floats_and_the_export_warns(values: dict, slow: bool) -> None:
    assert (Target.model_validate(values).speed_warning is not None) is slow
