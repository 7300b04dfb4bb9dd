"""A matrix that a checkpoint holds as integers with scales, seen as a `Weight`, and the parts of several formats that
are alike: words of 32 bits with some integers each, and matrices made of a scale for each group.

Place in the pipeline: the readers of the formats (gptq_words.py, awq_words.py, ...) give `PackedWeight`s;
whole_weights.py holds their shapes against config.json, the loader reads their values, and an export takes their
integers as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrkit.checkpoints.tensors.stored import FLOATS, StoredTensor
from lrkit.contract.quantized import Quantized
from lrkit.errors import CheckpointError, clean

AGAIN = "copy the checkpoint again"
MAX_SCALE = 1e30
"""Of a scale; a larger one times an integer would be no float any more."""


@dataclass(frozen=True)
class PackedWeight:
    """One matrix (out, in), or rows that are looked up, as integers in a file."""

    file: Path
    name: str
    """Of the floats that it stands for, by the file's own names."""
    shape: tuple[int, int]
    decode: Callable[[], Quantized]
    """Raises `CheckpointError` where the file cannot be read."""
    floats: Callable[[], Sequence[np.ndarray]]
    """The scales, and whatever else of it is no integer, without the integers."""
    decode_row: Callable[[int], Quantized] | None = None
    """The same of one row, where the file holds rows apart."""
    dtype: str = "F32"

    def integers(self) -> Quantized:
        """What the file holds, exactly."""
        return self.decode()

    def read(self) -> np.ndarray:
        """The values that the integers stand for, float32."""
        return self.decode().dequantize()

    def read_row(self, index: int) -> np.ndarray:
        """One row of them."""
        if self.decode_row is None:
            return self.read()[index]
        return self.decode_row(index).dequantize()[0]

    def odd_value(self) -> str:
        """See `Weight`: only what is no integer can be no number."""
        for values in self.floats():
            if bool(np.isnan(values).any()):
                return "NaN"
            if bool((np.abs(values) > MAX_SCALE).any()):
                return "infinity"
        return ""


def nibbles(words: np.ndarray, bits: int, order: Sequence[int] | None = None) -> np.ndarray:
    """int32 (..., W) -> uint8 (..., W * 32 / bits): the integers of each word, the lowest bits first; `order[i]` is
    the place of the i-th, where it is another."""
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * bits
    if order is not None:
        shifts = shifts[np.argsort(order)]
    unsigned = words.astype("<i4", copy=False).view("<u4")[..., None]
    return ((unsigned >> shifts) & ((1 << bits) - 1)).astype(np.uint8).reshape(*words.shape[:-1], -1)


def grouped(unsigned: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int) -> Quantized:
    """Integers (out, in) from 0 up, with scales (out, groups) and the integers that stand for zero, likewise (None: the
    middle): value = (integer - zero) * scale. A zero beyond the integers' range becomes a constant."""
    middle = 1 << (bits - 1)
    rows, groups = scales.shape
    integers = (unsigned.astype(np.int16) - middle).astype(np.int8).reshape(rows, groups, -1)
    scales = np.ascontiguousarray(scales, np.float32)
    if zeros is None:
        return Quantized(integers, scales, bits)
    shifted = zeros.astype(np.int16) - middle
    if not shifted.any():
        return Quantized(integers, scales, bits)
    if int(shifted.max()) >= middle:
        return Quantized(integers, scales, bits, constants=-shifted.astype(np.float32) * scales)
    return Quantized(integers, scales, bits, np.ascontiguousarray(shifted.astype(np.int8)))


def expect(stored: StoredTensor, shape: tuple[int, ...], types: Sequence[str]) -> None:
    """Raises `CheckpointError` where a part of a packed matrix has another shape, or is of none of the `types`."""
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.file}: {clean(stored.name)[:160]} has shape {stored.shape}, where config.json and its "
            f"quantization_config need {shape}; {AGAIN}"
        )
    if stored.dtype not in types:
        raise CheckpointError(
            f"{stored.file}: {clean(stored.name)[:160]} is of type {stored.dtype} where {' or '.join(types)} belongs; "
            f"{AGAIN}"
        )


FLOAT_TYPES = tuple(FLOATS)
