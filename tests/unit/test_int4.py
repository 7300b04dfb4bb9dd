"""Four and eight bit rounding, and that both encodings hold the same values."""

import numpy as np
import pytest

from lrkit.contract.schemes import SCHEMES
from lrkit.export.weights.integers import block_for, dequantize_linear, error_of, matmul_nbits
from lrkit.export.weights.quantizers.rounded import quantize


def matrix(rows: int = 24, width: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize(("bits", "half_step"), [(4, 0.5), (8, 0.5)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_no_weight_is_further_away_than_half_a_step(bits, half_step, block):
    weight = matrix()
    quantized = quantize(weight, block, bits)
    away = np.abs(weight - quantized.dequantize()).reshape(24, -1, block)
    assert (away <= half_step * quantized.scales[..., None] + 1e-6).all()
    assert (quantized.scales > 0).all()


def test_levels_are_used_to_both_ends():
    low = quantize(matrix(), 128).integers
    assert low.min() == -8 and low.max() == 7


def test_what_fits_is_kept_exactly():
    integers = np.random.default_rng(1).integers(-8, 8, (4, 64)).astype(np.float32)
    integers[:, 0], integers[:, 32] = -8, -8
    assert error_of(integers * 0.25, quantize(integers * 0.25, 32)) < 1e-6


def test_a_block_of_zeros_stays_zero():
    weight = matrix(2, 64)
    weight[0, :32] = 0
    quantized = quantize(weight, 32)
    assert (quantized.dequantize()[0, :32] == 0).all() and np.isfinite(quantized.scales).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_both_encodings_hold_the_same_values(bits):
    quantized = quantize(matrix(), 64, bits)
    packed, scales = matmul_nbits(quantized)
    if bits == 4:
        unpacked = np.stack([packed & 0xF, packed >> 4], -1).reshape(24, 4, 64).astype(np.float32) - 8
    else:
        unpacked = packed.astype(np.float32) - 128
    ort = (unpacked * scales.reshape(24, 4, 1)).reshape(24, 256)
    values, steps = dequantize_linear(quantized)
    standard = (values.astype(np.float32).reshape(4, 64, 24) * steps[:, None]).reshape(256, 24).T
    np.testing.assert_array_equal(ort, standard)
    np.testing.assert_allclose(ort, quantized.dequantize(), rtol=1e-6)


def test_blocks_shrink_where_the_width_asks_for_it():
    blocks = SCHEMES["int4"].blocks
    assert [block_for(width, 128, blocks) for width in (256, 192, 96, 100)] == [128, 64, 32, None]
    assert block_for(256, 32, blocks) == 32
