"""Integers that a checkpoint holds, put together as a program's matrices are: the rows of queries, keys and values by
key head, of gate and up one after the other.

Nothing is rounded: where matrices of one product have other blocks or bits, the smaller block and the more bits hold
all. Scales of queries take over 1 / sqrt(W), as their floats do.

Place in the pipeline: streaming.py makes it of a checkpoint's weights; `Source.stored` gives it to the export.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lrkit.checkpoints.quantized.packed_weight import PackedWeight
from lrkit.checkpoints.tensors.stored import Weight
from lrkit.contract.quantized import Quantized
from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.reader import WeightReader
from lrkit.export.weights.row_places import Rows, rows_of

LARGEST_BLOCK, LEAST_BLOCK = 128, 16
"""Weights per scale that operators read; a scale for more of them is repeated."""


@dataclass(frozen=True)
class StoredIntegers:
    """By the role of a matrix (source.py)."""

    weights: Mapping[str, Weight]
    """By their names in transformers."""
    changed: frozenset[str]
    """Those that an adapter changes."""
    reader: WeightReader
    dimensions: Dimensions
    tied: bool
    latent_id: int
    extras: Mapping[str, np.ndarray]
    """With the rows of the latent token."""

    def __call__(self, role: str) -> Quantized | None:
        """The integers of a matrix; None where the checkpoint holds it in floats, at least in part, or an adapter
        changes it."""
        if role in ("embedding", "head"):
            return self._vocabulary(role)
        rows = self._rows(role)
        if rows is None:
            return None
        parts = [self._integers(tensor) for tensor in rows.tensors]
        whole = [part for part in parts if part is not None]
        return joined(whole, rows) if len(whole) == len(parts) else None

    def merged_into(self, role: str) -> bool:
        """Whether the checkpoint holds the whole matrix as integers, and an adapter changes it."""
        tensors = () if (rows := self._rows(role)) is None else rows.tensors
        packed = all(isinstance(self.weights[tensor], PackedWeight) for tensor in tensors)
        return packed and any(tensor in self.changed for tensor in tensors)

    def _rows(self, role: str) -> Rows | None:
        """Of a matrix of a layer; None for any other role."""
        number, _, name = role.partition(".")
        if not number.isdigit():
            return None
        return rows_of(self.reader, lambda tensor: self.weights[tensor].shape[0], int(number), name, self.dimensions)

    def _integers(self, tensor: str) -> Quantized | None:
        found = self.weights[tensor]
        return found.integers() if isinstance(found, PackedWeight) and tensor not in self.changed else None

    def _vocabulary(self, role: str) -> Quantized | None:
        """Embedding or head, with the row that the latent token has learned: rounded to nearest, as nobody stored its
        integers."""
        head = role == "head" and not self.tied
        tensor = self.reader.head if head else self.reader.embedding
        made = self._integers(tensor)
        made = None if made is None else in_blocks(made, _block_of([made]))
        if made is None:
            return None
        trained = "embedding" if role == "embedding" and not self.tied else "head"
        row = self.extras[f"latent.{trained}_row_D"]
        if np.array_equal(row, self.weights[tensor].read_row(self.latent_id)):
            return made
        return with_row(made, self.latent_id, row.astype(np.float32))


def joined(parts: Sequence[Quantized], rows: Rows) -> Quantized | None:
    """The matrix whose rows are those of `parts`; None where no operator has a block for all."""
    same = [in_blocks(part, _block_of(parts)) for part in parts]
    whole = [part for part in same if part is not None]
    if len(whole) < len(parts):
        return None

    def gathered(arrays: Sequence[np.ndarray]) -> np.ndarray:
        made = np.empty((len(rows.which), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, array in enumerate(arrays):
            own = rows.which == i
            made[own] = array[rows.row[own]]
        return made

    def or_none(of: Callable[[Quantized], np.ndarray | None], blank: type) -> np.ndarray | None:
        found = [of(part) for part in whole]
        if all(one is None for one in found):
            return None
        return gathered([
            np.zeros(part.scales.shape, blank) if one is None else one for part, one in zip(whole, found, strict=True)
        ])  # fmt: skip

    factor = rows.factor.astype(np.float32)[:, None]
    constants = or_none(lambda part: part.constants, np.float32)
    return Quantized(
        gathered([part.integers for part in whole]), gathered([part.scales for part in whole]) * factor,
        max(part.bits for part in whole), or_none(lambda part: part.zeros, np.int8),
        None if constants is None else constants * factor,
    )  # fmt: skip


def _block_of(parts: Sequence[Quantized]) -> int:
    return math.gcd(LARGEST_BLOCK, *(part.block for part in parts))


def in_blocks(made: Quantized, block: int) -> Quantized | None:
    """The same values with smaller blocks, whose scales repeat; None where they are too small for every operator."""
    if block < LEAST_BLOCK:
        return None
    times = made.block // block
    if times == 1:
        return made

    def repeated(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.repeat(array, times, axis=1)

    rows = made.shape[0]
    return Quantized(
        made.integers.reshape(rows, -1, block), np.repeat(made.scales, times, axis=1), made.bits,
        repeated(made.zeros), repeated(made.constants),
    )  # fmt: skip


def with_row(made: Quantized, index: int, row: np.ndarray) -> Quantized:
    """The same with another row (in,), each of whose weights goes to the nearest integer."""
    integers, scales = made.integers.copy(), made.scales.copy()
    blocks = row.reshape(-1, made.block)
    largest = np.abs(blocks).max(axis=1) / ((1 << (made.bits - 1)) - 1)
    scales[index] = np.where(largest > 0, largest, 1)
    integers[index] = np.rint(blocks / scales[index][:, None]).astype(np.int8)
    zeros, constants = (None if one is None else one.copy() for one in (made.zeros, made.constants))
    for one in (zeros, constants):
        if one is not None:
            one[index] = 0
    return Quantized(integers, scales, made.bits, zeros, constants)


def symmetric(made: Quantized) -> Quantized:
    """The same values without zeros: what they subtract is a constant of each block."""
    if made.zeros is None:
        return made
    constants = -made.zeros.astype(np.float32) * made.scales
    return replace(made, zeros=None, constants=constants if made.constants is None else made.constants + constants)
