"""Looks for the scale of each block that leaves the smallest error, by trying some and solving for the best of each.
Needs no data; where it is known what a matrix is multiplied with, columns count by the mean square of their inputs.

Place in the pipeline: quantizer.py loads `Searched` where a target says int4.method=search; gptq.py takes its scales.

Legend: a block is (..., block) weights with one scale, and one offset where the scheme has them.
"""

from dataclasses import dataclass

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.export.weights.integers import pieces
from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.export.weights.quantizers.rounded import RANGES, grid

SHRINK = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Parts of the range that are tried: what lies outside is clipped, what lies inside is rounded finer."""
_TINY = 1e-30


@dataclass(frozen=True)
class Searched:
    """The quantizer of a scheme, with `block` weights per scale."""

    scheme: Scheme
    block: int

    def __call__(self, weight: np.ndarray, role: str, calibration: Calibration | None = None) -> Quantized:
        """Integers of a matrix (out, in)."""
        importance = None if calibration is None else np.diag(calibration.hessian).astype(np.float32)
        return search(weight, self.block, self.scheme.bits, self.scheme.offsets, importance)


def search(
    weight: np.ndarray, block: int, bits: int, offsets: bool, importance: np.ndarray | None = None
) -> Quantized:  # fmt: skip
    """Integers of a matrix (out, in); `importance` (in,) weighs the squared error of each column."""
    rows, width = weight.shape
    counts = np.ones(width, np.float32) if importance is None else importance + importance.mean() * 1e-3 + _TINY
    by_block = counts.reshape(1, width // block, block)
    integers = np.empty((rows, width // block, block), np.int8)
    scales = np.empty((rows, width // block), np.float32)
    zeros = np.zeros((rows, width // block), np.int8) if offsets else None
    for part in pieces(rows, width):
        blocks = weight[part].reshape(-1, width // block, block).astype(np.float32, copy=False)
        scales[part], found = best_grid(blocks, by_block, bits, offsets)
        zero = found[..., None] if offsets else np.float32(0)
        integers[part] = _rounded(blocks, scales[part][..., None], zero, bits)
        if zeros is not None:
            zeros[part] = found
    return Quantized(integers, scales, bits, zeros)


def best_grid(
    blocks: np.ndarray, importance: np.ndarray, bits: int, offsets: bool
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(scales, zeros), each (...,), of blocks (..., block): the grid with the smallest weighted squared error."""
    chosen, offset = grid(blocks, bits, offsets)
    ends = np.stack([blocks.min(-1), blocks.max(-1)], -1)  # a grid knows no more of a block
    best = np.full(chosen.shape, np.inf, np.float32)
    for shrink in SHRINK:
        scale, zero = grid(ends * shrink, bits, offsets)
        steps = _steps(blocks, scale, zero, bits)
        for tried in (scale, _solved(blocks, importance, scale, steps)):
            steps = steps if tried is scale else _steps(blocks, tried, zero, bits)
            lost = _lost(blocks, importance, tried, steps)
            better = lost < best
            best = np.where(better, lost, best)
            chosen, offset = np.where(better, tried, chosen), np.where(better, zero, offset)
    return chosen.astype(np.float32), offset.astype(np.float32)


def _rounded(blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray | np.float32, bits: int) -> np.ndarray:
    high, low = RANGES[bits]
    steps = blocks / scale
    np.rint(steps, out=steps)
    steps += zero
    return np.clip(steps, low, high, out=steps)


def _steps(blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """How many scales a rounded weight is from zero."""
    steps = _rounded(blocks, scale[..., None], zero[..., None], bits)
    steps -= zero[..., None]
    return steps


def _lost(blocks: np.ndarray, importance: np.ndarray, scale: np.ndarray, steps: np.ndarray) -> np.ndarray:
    off = scale[..., None] * steps
    np.subtract(blocks, off, out=off)
    off *= off
    off *= importance
    return off.sum(-1)


def _solved(blocks: np.ndarray, importance: np.ndarray, scale: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The scale with the least error of the integers `steps`, which stay."""
    weighed = importance * steps
    length = np.maximum((weighed * steps).sum(-1), _TINY)
    weighed *= blocks
    best = weighed.sum(-1) / length
    return np.where(best > 0, best, scale).astype(np.float32)
