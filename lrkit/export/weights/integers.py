"""Matrices of four and eight bit integers, symmetric, one scale per block; and the two ways ONNX writes them.

Place in the pipeline: quantizers/ -> `Quantized` -> weight_store.py, which asks for one encoding of the values:
MatMulNBits (ONNX Runtime: unsigned, zero point 8 implied, (out, blocks, block / 2)), DequantizeLinear (standard:
signed INT4 blocks along the input of an (in, out) matrix), or bytes with a scale per row (both).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

PIECE = 1 << 18
"""Weights that are worked on at a time."""


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in) as integers and scales; value = integer * scale."""

    integers: np.ndarray
    """int8 (out, blocks, block), -8..7 for 4 bits, -127..127 for 8."""
    scales: np.ndarray
    """float32 (out, blocks)."""
    bits: int
    """4 or 8."""

    @property
    def block(self) -> int:
        """Weights per scale."""
        return self.integers.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        rows, blocks, block = self.integers.shape
        return rows, blocks * block

    def dequantize(self) -> np.ndarray:
        """float32 (out, in)."""
        return (self.integers * self.scales[..., None]).reshape(self.shape)


def block_for(width: int, wanted: int, blocks: Sequence[int]) -> int | None:
    """The largest of `blocks` up to `wanted` that divides `width`; None where none does."""
    return max((block for block in blocks if block <= wanted and width % block == 0), default=None)


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Rows in pieces that stay in a core's cache: three times as fast as a large matrix at once, without its
    copies."""
    step = max(1, PIECE // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def matmul_nbits(quantized: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """B uint8 (out, blocks, bytes) and scales (out * blocks): low nibble first, zero point 8 (128 for 8 bits)
    implied."""
    if quantized.bits == 8:
        return (quantized.integers.astype(np.int16) + 128).astype(np.uint8), quantized.scales.reshape(-1)
    shifted = (quantized.integers + 8).astype(np.uint8)
    return shifted[..., 0::2] | shifted[..., 1::2] << 4, quantized.scales.reshape(-1)


def by_row(quantized: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """int8 (in, out) and scales (out,), of a matrix whose block is a row."""
    integers = quantized.integers.reshape(quantized.shape).T
    return np.ascontiguousarray(integers), quantized.scales[:, 0]


def dequantize_linear(quantized: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """x INT4 (in, out) and scales (blocks, out) for DequantizeLinear with axis 0."""
    rows, width = quantized.shape
    integers = quantized.integers.reshape(rows, width).T
    kind = ml_dtypes.int4 if quantized.bits == 4 else np.int8
    return np.ascontiguousarray(integers).astype(kind), np.ascontiguousarray(quantized.scales.T)


def error_of(weight: np.ndarray, quantized: Quantized) -> float:
    """Relative error ||w - q|| / ||w||."""
    rows, width = weight.shape
    wrong = total = 0.0
    for part in pieces(rows, width):
        own = weight[part]
        held = quantized.integers[part] * quantized.scales[part, :, None]
        wrong += float(np.linalg.norm(own - held.reshape(own.shape))) ** 2
        total += float(np.linalg.norm(own)) ** 2
    return (wrong / max(total, 1e-60)) ** 0.5
