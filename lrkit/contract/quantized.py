"""A matrix of integers with one scale for each block of weights: what rounding, calibrating and importing give, and
what a program holds. Torch-free.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in) as integers and scales; value = (integer - zero) * scale + constant."""

    integers: np.ndarray
    """int8 (out, blocks, block), -8..7 for 4 bits, -127..127 for 8; or floats of so many bits (of ml_dtypes)."""
    scales: np.ndarray
    """float32 (out, blocks)."""
    bits: int
    """4 or 8."""
    zeros: np.ndarray | None = None
    """int8 (out, blocks), the integers that stand for zero, in the range of the others; None: 0 everywhere."""
    constants: np.ndarray | None = None
    """float32 (out, blocks), added to every weight of a block; None: 0 everywhere. No quantizer makes them; files of
    others have them, such as GGUF's Q4_1."""

    @property
    def block(self) -> int:
        """Weights per scale."""
        return self.integers.shape[2]

    @property
    def is_float(self) -> bool:
        """Whether they are floats."""
        return self.integers.dtype.kind != "i"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""
        rows, blocks, block = self.integers.shape
        return rows, blocks * block

    def dequantize(self) -> np.ndarray:
        """float32 (out, in)."""
        return self.values(slice(None)).reshape(self.shape)

    def values(self, rows: slice) -> np.ndarray:
        """float32 (rows, blocks, block) of some rows."""
        integers = self.integers[rows]
        if self.zeros is not None:
            integers = integers.astype(np.int16) - self.zeros[rows, :, None]
        if self.is_float:
            integers = integers.astype(np.float32)
        values = integers * self.scales[rows, :, None]
        return values if self.constants is None else values + self.constants[rows, :, None]
