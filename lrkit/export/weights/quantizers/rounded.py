"""Rounds to nearest: one scale per block or per row, the smallest that clips nothing. Needs no data.

Place in the pipeline: quantizer.py loads `Rounded` by the rows of int4 and int8, `RoundedOffsets` by that of
int4-offsets, `RoundedRows` by that of w8a8.
"""

from dataclasses import dataclass

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.export.weights.integers import pieces
from lrkit.export.weights.quantizers.quantizer import Calibration

RANGES = {3: (3, -4), 4: (7, -8), 8: (127, -127)}
"""Bits -> (largest, smallest integer). No program holds 3; what is measured on torch does."""


@dataclass(frozen=True)
class Rounded:
    """The quantizer of a scheme, with `block` weights per scale."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in)."""
        return quantize(weight, self.block, self.scheme.bits)


@dataclass(frozen=True)
class RoundedOffsets:
    """The quantizer of a scheme with an offset for each block too."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in)."""
        return quantize_with_offsets(weight, self.block, self.scheme.bits)


@dataclass(frozen=True)
class RoundedRows:
    """The quantizer of a scheme whose activations are bytes too; a `block` is a row."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in), -64..64."""
        # A CPU without VNNI adds two products of a byte and such an integer in 16 bits: 2 * 255 * 64 still fits, and
        # 2 * 255 * 127 does not. ONNX Runtime has exact products of unsigned weights, which leave AMX unused.
        return quantize(weight, self.block, self.scheme.bits, high=64)


def quantize(weight: np.ndarray, block: int, bits: int = 4, high: int | None = None) -> Quantized:
    """Symmetric round to nearest of a matrix (out, in) whose `in` is a multiple of `block`.

    Scales are positive (TensorRT refuses others) and the smallest that clip nothing: 4 bits reach from -8 to 7, 8 bits
    from -127 to 127, or from -high to high.
    """
    rows, width = weight.shape
    high, low = (high, -high) if high is not None else RANGES[bits]
    integers = np.empty((rows, width // block, block), np.int8)
    scales = np.empty((rows, width // block), np.float32)
    for part in pieces(rows, width):
        integers[part], scales[part] = _rounded(weight[part].reshape(-1, width // block, block), low, high)
    return Quantized(integers, scales, bits)


def quantize_with_offsets(weight: np.ndarray, block: int, bits: int = 4) -> Quantized:
    """Round to nearest of a matrix (out, in) whose `in` is a multiple of `block`, with one of the integers standing for
    zero: all of them lie between the smallest weight of a block and its largest, or zero where that is farther out."""
    rows, width = weight.shape
    high, low = RANGES[bits]
    integers = np.empty((rows, width // block, block), np.int8)
    scales, zeros = (np.empty((rows, width // block), kind) for kind in (np.float32, np.int8))
    for part in pieces(rows, width):
        blocks = weight[part].reshape(-1, width // block, block).astype(np.float32, copy=False)
        scales[part], zero = grid(blocks, bits, offsets=True)
        zeros[part] = zero
        steps = np.rint(blocks / scales[part][..., None]) + zero[..., None]
        integers[part] = np.clip(steps, low, high)
    return Quantized(integers, scales, bits, zeros)


def grid(blocks: np.ndarray, bits: int, offsets: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zeros), float32 (...,), of blocks (..., block): the finest integers that clip nothing. Without `offsets`
    all zeros are 0."""
    high, low = RANGES[bits]
    least, most = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = (most - least) / (high - low) if offsets else np.maximum(least / low, most / high)
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    zeros = np.clip(low - np.rint(least / scales), low, high) if offsets else np.zeros_like(scales)
    return scales, zeros.astype(np.float32)


def _rounded(blocks: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = blocks.astype(np.float32, copy=False)
    scales = np.maximum(blocks.min(-1) / low, blocks.max(-1) / high)
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    return np.clip(np.rint(blocks / scales[..., None]), low, high).astype(np.int8), scales
