"""Rounds to nearest: one scale per block, the smallest that clips nothing. Needs no data.

Place in the pipeline: quantizer.py loads `Rounded` by the rows of int4 and int8.
"""

from dataclasses import dataclass

import numpy as np

from lrkit.contract.schemes import Scheme
from lrkit.export.weights.integers import Quantized, pieces
from lrkit.export.weights.quantizers.quantizer import Calibration


@dataclass(frozen=True)
class Rounded:
    """The quantizer of a scheme, with `block` weights per scale."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in)."""
        return quantize(weight, self.block, self.scheme.bits)


def quantize(weight: np.ndarray, block: int, bits: int = 4) -> Quantized:
    """Symmetric round to nearest of a matrix (out, in) whose `in` is a multiple of `block`.

    Scales are positive (TensorRT refuses others) and the smallest that clip nothing: 4 bits reach from -8 to 7, 8 bits
    from -127 to 127.
    """
    rows, width = weight.shape
    integers = np.empty((rows, width // block, block), np.int8)
    scales = np.empty((rows, width // block), np.float32)
    for part in pieces(rows, width):
        integers[part], scales[part] = _rounded(weight[part].reshape(-1, width // block, block), bits)
    return Quantized(integers, scales, bits)


def _rounded(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = blocks.astype(np.float32, copy=False)
    high = 2 ** (bits - 1) - 1
    low = -high if bits == 8 else -high - 1
    scales = np.maximum(blocks.min(-1) / low, blocks.max(-1) / high)
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    return np.clip(np.rint(blocks / scales[..., None]), low, high).astype(np.int8), scales
