"""The ways ONNX writes matrices of four and eight bit integers, and work on them in pieces.

Place in the pipeline: quantizers/ -> `Quantized` -> weight_store.py, which asks for one encoding of the values:
MatMulNBits (ONNX Runtime: unsigned, zero point 8 implied, (out, blocks, block / 2)), DequantizeLinear (standard:
signed INT4 blocks along the input of an (in, out) matrix), or bytes with a scale per row (both).
"""

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from lrkit.contract.quantized import Quantized

E4M3_MOST = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
"""Largest float of eight bits."""
PIECE = 1 << 18
"""Weights that are worked on at a time."""


def scale_unit(scales: np.ndarray) -> np.ndarray:
    """The number, float32 (), that scales of eight bits are multiplied with: the largest is then the largest float."""
    return np.array(max(float(scales.max()), 1e-30) / E4M3_MOST, np.float32)


def block_for(width: int, wanted: int, blocks: Sequence[int]) -> int | None:
    """The largest of `blocks` up to `wanted` that divides `width`; None where none does."""
    return max((block for block in blocks if block <= wanted and width % block == 0), default=None)


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Rows in pieces that stay in a core's cache: three times as fast as a large matrix at once, without its
    copies."""
    step = max(1, PIECE // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def matmul_nbits(quantized: Quantized) -> tuple[np.ndarray, ...]:
    """B uint8 (out, blocks, bytes) and scales (out * blocks): low nibble first, zero point 8 (128 for 8 bits) implied.
    With offsets, zero points uint8 (out * bytes) too, each row of blocks filled up to whole bytes."""
    integers, scales = _unsigned(quantized.integers, quantized.bits), quantized.scales.reshape(-1)
    if quantized.zeros is None:
        return integers, scales
    odd = quantized.bits == 4 and quantized.zeros.shape[1] % 2
    zeros = np.pad(quantized.zeros, ((0, 0), (0, 1))) if odd else quantized.zeros
    return integers, scales, _unsigned(zeros, quantized.bits).reshape(-1)


def _unsigned(integers: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return (integers.astype(np.int16) + 128).astype(np.uint8)
    shifted = (integers + 8).astype(np.uint8)
    return shifted[..., 0::2] | shifted[..., 1::2] << 4


def by_row(quantized: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """int8 (in, out), or floats of eight bits, and scales (out,), of a matrix whose block is a row."""
    integers = quantized.integers.reshape(quantized.shape).T
    return np.ascontiguousarray(integers), quantized.scales[:, 0]


def dequantize_linear(quantized: Quantized) -> tuple[np.ndarray, ...]:
    """x INT4 (in, out) and scales (blocks, out) for DequantizeLinear with axis 0; with offsets, zero points as the
    scales, of the type of x. Floats of four bits: x FLOAT4E2M1, scales FLOAT8E4M3, and what these are multiplied with,
    ()."""
    rows, width = quantized.shape
    values = np.ascontiguousarray(quantized.integers.reshape(rows, width).T)
    scales = np.ascontiguousarray(quantized.scales.T)
    if quantized.is_float:
        unit = scale_unit(scales)
        return values, (scales / unit).astype(ml_dtypes.float8_e4m3fn), unit
    kind = ml_dtypes.int4 if quantized.bits == 4 else np.int8
    made = values.astype(kind), scales
    return made if quantized.zeros is None else (*made, np.ascontiguousarray(quantized.zeros.T).astype(kind))


def error_of(weight: np.ndarray, quantized: Quantized) -> float:
    """Relative error ||w - q|| / ||w||."""
    rows, width = weight.shape
    wrong = total = 0.0
    for part in pieces(rows, width):
        own = weight[part]
        wrong += float(np.linalg.norm(own - quantized.values(part).reshape(own.shape))) ** 2
        total += float(np.linalg.norm(own)) ** 2
    return (wrong / max(total, 1e-60)) ** 0.5
