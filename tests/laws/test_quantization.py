"""Rounding to four and eight bits errs by half a step at most, and both encodings hold the same integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lrkit.contract.quantized import Quantized
from lrkit.export.weights.integers import block_for, dequantize_linear, error_of, matmul_nbits
from lrkit.export.weights.quantizers.rounded import quantize

values = st.one_of(
    st.floats(-4, 4, width=32, allow_subnormal=False),
    st.builds(lambda part, power: float(np.float32(part * 10.0**power)), st.floats(-1, 1), st.integers(-20, 30)),
    st.sampled_from([0.0, -0.0, 1e-38, -1e-38, 7.0, -8.0, 0.5, -0.5, 127.0]),
)
bits = st.sampled_from([4, 8])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A matrix [out, in] and a block that divides `in`."""
    block = draw(st.sampled_from([2, 4, 32]))
    shape = (draw(st.integers(1, 5)), block * draw(st.integers(1, 3)))
    return draw(arrays.arrays(np.float32, shape, elements=values, fill=st.just(0.0))), block


def packed_nibbles(packed: np.ndarray) -> np.ndarray:
    low, high = packed & 15, packed >> 4
    return np.stack([low, high], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.int16) - 8


@given(matrices(), bits)
def test_no_weight_errs_by_more_than_half_a_step_of_its_block(case: tuple[np.ndarray, int], bits: int) -> None:
    weight, block = case
    held = quantize(weight, block, bits)
    assert held.shape == weight.shape and held.block == block
    assert bool((held.scales > 0).all()) and bool(np.isfinite(held.scales).all())
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    assert int(held.integers.min()) >= low and int(held.integers.max()) <= high
    steps = np.repeat(held.scales, block, axis=1).astype(np.float64)
    errors = np.abs(held.dequantize().astype(np.float64) - weight)
    assert bool((errors <= steps * (0.5 + 1e-4)).all())


@given(matrices(), bits)
def test_the_largest_weight_of_a_block_uses_its_whole_range(case: tuple[np.ndarray, int], bits: int) -> None:
    """The scale is the smallest that clips nothing."""
    weight, block = case
    held = quantize(weight, block, bits)
    largest = np.abs(weight).reshape(held.integers.shape).max(-1)
    reached = np.abs(held.integers.astype(np.int16)).max(-1)
    assert bool((reached[largest > 1e-30] >= (7 if bits == 4 else 127)).all())
    assert bool((reached[largest == 0] == 0).all())


@given(matrices(), bits)
def test_integers_come_back_out_of_both_encodings(case: tuple[np.ndarray, int], bits: int) -> None:
    weight, block = case
    held = quantize(weight, block, bits)
    packed, scales = matmul_nbits(held)
    unpacked = packed_nibbles(packed) if bits == 4 else packed.astype(np.int16) - 128
    assert np.array_equal(unpacked, held.integers) and np.array_equal(scales, held.scales.reshape(-1))
    integers, scales = dequantize_linear(held)
    rows, width = held.shape
    assert integers.shape == (width, rows) and scales.shape == (width // block, rows)
    assert np.array_equal(integers.astype(np.int16).T.reshape(held.integers.shape), held.integers)
    assert np.array_equal(scales.T, held.scales)


@given(matrices(), bits)
def test_rounding_what_was_rounded_changes_nothing(case: tuple[np.ndarray, int], bits: int) -> None:
    weight, block = case
    once = quantize(weight, block, bits)
    again = quantize(once.dequantize(), block, bits)
    np.testing.assert_allclose(again.dequantize(), once.dequantize(), rtol=1e-5, atol=1e-36)


@given(matrices(), bits)
def test_the_told_error_is_that_of_the_matrix(case: tuple[np.ndarray, int], bits: int) -> None:
    weight, block = case
    if float(np.abs(weight).max()) > 1e15:  # its square is beyond float32, in which the norm is taken
        return
    held: Quantized = quantize(weight, block, bits)
    exact = weight.astype(np.float64)
    wrong, total = np.linalg.norm(exact - held.dequantize()), np.linalg.norm(exact)
    if total > 1e-15:
        assert error_of(weight, held) == pytest.approx(wrong / total, rel=1e-3, abs=1e-7)


blocks = st.sets(st.sampled_from([16, 32, 64, 128, 256]), min_size=1).map(lambda sizes: sorted(sizes, reverse=True))


@given(st.integers(1, 4096), st.integers(1, 300), blocks)
def test_a_block_divides_the_width_and_is_the_largest_of_those_allowed(
    width: int, wanted: int, blocks: list[int]
) -> None:
    block = block_for(width, wanted, blocks)
    fitting = [size for size in blocks if size <= wanted and width % size == 0]
    assert block == (max(fitting) if fitting else None)
