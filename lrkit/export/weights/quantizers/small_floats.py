"""Rounds to floats of eight and four bits: the numbers of `Quantized` are then such floats, and a scale is the largest
that reaches the largest weight.

    fp8     E4M3, one scale per row; from Ada Lovelace on (sm89)
    nvfp4   E2M1, one scale for 16 weights, itself a float of eight bits times one number per matrix; Blackwell

Place in the pipeline: quantizer.py loads `Float8Rows` and `Float4Blocks` by the rows of fp8 and nvfp4.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.export.weights.integers import E4M3_MOST, pieces, scale_unit
from lrkit.export.weights.quantizers.quantizer import Calibration

E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn
LARGEST = {8: E4M3_MOST, 4: 6.0}
"""Bits -> largest float."""


@dataclass(frozen=True)
class Float8Rows:
    """The quantizer of fp8; a `block` is a row."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Floats of a matrix (out, in)."""
        most = np.abs(weight).max(1, keepdims=True)
        scales = np.where(most > 0, most / LARGEST[8], 1.0).astype(np.float32)
        return _divided(weight, scales, E4M3)


@dataclass(frozen=True)
class Float4Blocks:
    """The quantizer of nvfp4."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Floats of a matrix (out, in) whose `in` is a multiple of the block."""
        most = np.abs(weight.reshape(len(weight), -1, self.block)).max(-1)
        unit = scale_unit(most / LARGEST[4])
        eighths = (most / LARGEST[4] / unit).astype(E4M3)
        # A block of zeros, or of next to none beside the largest, has the smallest scale there is.
        eighths = np.where(eighths > 0, eighths, ml_dtypes.finfo(E4M3).smallest_subnormal).astype(np.float32)
        return _divided(weight, eighths * unit, E2M1)


def _divided(weight: np.ndarray, scales: np.ndarray, kind: type) -> Quantized:
    rows, width = weight.shape
    blocks = scales.shape[1]
    floats = np.empty((rows, blocks, width // blocks), kind)
    bits = 8 if kind is E4M3 else 4
    for part in pieces(rows, width):
        steps = weight[part].reshape(-1, blocks, width // blocks) / scales[part][..., None]
        floats[part] = np.clip(steps, -LARGEST[bits], LARGEST[bits]).astype(kind)
    return Quantized(floats, scales.astype(np.float32), bits)
