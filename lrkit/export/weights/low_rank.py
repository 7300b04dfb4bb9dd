"""What an adapter adds to the matrices of a program, where it is kept apart from them: two narrow matrices each.

Place in the pipeline: source.py asks `branch_of` by the role of a matrix, as it asks packing.py for the matrix itself;
lrkit/export/graph/branches.py writes the products.

Legend: R rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lrkit.export.weights.layer_recipe import Dimensions
from lrkit.export.weights.packing import packed
from lrkit.export.weights.reader import WeightReader

_PACKED = {"qkv": ("q", "k", "v")}
"""Matrix of a program -> the parts of a layer whose rows are mixed in it; any other has its parts one by one."""


@dataclass(frozen=True)
class LowRank:
    """up @ down is added to a matrix (out, in)."""

    down: np.ndarray
    """(R, in), float32."""
    up: np.ndarray
    """(out, R), float32, with the adapter's scale in it."""


Adapted = Callable[[str], LowRank | None]
"""A weight by its name in transformers, or a matrix by its role -> what is added to it; None: nothing."""


def nothing_added(name: str) -> LowRank | None:
    """Of a model without an adapter, or with one that has been merged."""
    return None


def branch_of(reader: WeightReader, adapted: Adapted, role: str, dimensions: Dimensions) -> LowRank | None:
    """What is added to the matrix `role`, LAYER.NAME.

    A packed matrix has the rows of all parts in `down`, one part's behind the other's. In `up` each part's rows stand
    where packing puts the rows of its matrix, by the same factors, and are zero in the columns of the other parts.
    """
    number, _, name = role.partition(".")
    if not number.isdigit():
        return None
    found = {part: _side(reader, adapted, int(number), part) for part in _PACKED.get(name, (name,))}
    sides = {part: side for part, side in found.items() if side is not None}
    if not sides:
        return None
    downs, ups = [side.down for side in sides.values()], dict[str, np.ndarray]()
    total, before = sum(map(len, downs)), 0
    for part, side in sides.items():
        after = total - before - len(side.down)
        ups[part] = np.pad(side.up, ((0, 0), (before, after)))
        before += len(side.down)

    def rows(part: str, kind: str) -> np.ndarray:
        return ups[part] if part in ups else np.zeros((_height(part, dimensions), total), np.float32)

    return LowRank(np.concatenate(downs), packed(rows, name, dimensions))


def _side(reader: WeightReader, adapted: Adapted, number: int, part: str) -> LowRank | None:
    """Of one part of a layer. The reader takes rows of tensors as they are, and so it takes those of `up`."""
    found: list[LowRank] = []

    def read(tensor: str) -> np.ndarray:
        one = adapted(tensor)
        found.extend([] if one is None else [one])
        return np.zeros((1, 1), np.float32) if one is None else one.up

    up = reader.layer(read, number, part, "weight")
    return LowRank(found[0].down, up) if found else None


def _height(part: str, dimensions: Dimensions) -> int:
    """Rows of queries, keys or values."""
    return (dimensions.num_heads if part == "q" else dimensions.num_key_heads) * dimensions.head_width
