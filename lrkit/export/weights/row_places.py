"""Which row of which tensor each row of a program's matrix is: for integers that were made of a tensor, and for values
that go back into it.

Place in the pipeline: packing.py packs a layer's tensors; calibration and the import of stored integers undo and follow
what it does by `rows_of`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.packing import packed
from lrkit.export.weights.reader import WeightReader

Height = Callable[[str], int]
"""Name of a tensor in transformers -> its rows."""


@dataclass(frozen=True)
class Rows:
    """Where the rows of a packed matrix (out, in) come from."""

    tensors: tuple[str, ...]
    """By their names in transformers."""
    which: np.ndarray
    """int (out,), index into `tensors`."""
    row: np.ndarray
    """int (out,), the row there."""
    factor: np.ndarray
    """float64 (out,), what packing multiplies it with."""


def rows_of(reader: WeightReader, height: Height, number: int, name: str, dimensions: Dimensions) -> Rows:
    """Of the matrix `name` (qkv, out, gate_up, ...) of a layer. The reader takes rows of tensors as they are, and so it
    gets rows that say which they are."""
    tensors: list[str] = []

    def read(tensor: str) -> np.ndarray:
        tensors.append(tensor)
        rows = height(tensor)
        return np.stack([np.arange(rows), np.full(rows, len(tensors) - 1), np.ones(rows)], axis=1)

    places = packed(lambda part, kind: reader.layer(read, number, part, kind), name, dimensions)
    factor = places[:, 2].astype(np.float64)
    row, which = (np.rint(places[:, i] / factor).astype(np.int64) for i in (0, 1))
    return Rows(tuple(tensors), which, row, factor)
