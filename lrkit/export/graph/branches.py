"""The side branches of an adapter that is kept apart: y = W x + B (A x), in floats, beside matrices of any form.

Place in the pipeline: writer.py adds them to the products of layers.py, with what `Source.low_rank` gives.

Matrices that read the same x share one product: their A's are one matrix. Their B's stay apart where the products do,
because a block for each in one matrix would be read with all its zeros: of gate and up, 1536 to 8960 at rank 32, that
took 1.33 times as long as the int4 matrix alone, and two products take 1.15 (one row, ONNX Runtime 1.32, one thread).

Legend: S tokens, R rank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.weight_store import WeightStore
from lrkit.export.weights.low_rank import Adapted, LowRank, nothing_added

PART = "adapter"
"""Part of the model that its bytes are counted under."""
_DOWN, _UP = ".adapter.A", ".adapter.B"
"""Behind the matrices' roles, joined by +, and behind one of them: names of stored sides."""


@dataclass
class Branches:
    """Those of one program. Each side is read and stored once, whatever graphs use it."""

    store: WeightStore
    fused: bool
    """Whether a product may take over the sum, as ONNX Runtime's Gemm does at no cost; else standard MatMul and Add."""
    low_rank: Adapted = nothing_added
    _ranks: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict[tuple[str, ...], tuple[int, ...]])
    """By matrices that share a product: the rank of each, 0 without a branch."""

    def add(self, g: Graph, x: Value, roles: Sequence[str], products: Sequence[Value]) -> list[Value]:
        """`products` (S, out) of x (S, in) and the matrices `roles`, each with its branch added, where it has one."""
        ranks = self._ranks_of(tuple(roles))
        if not any(ranks):
            return list(products)
        name = f"{'+'.join(roles)}{_DOWN}"
        low = self._product(g, x, self.store.vector(g, name, PART))
        adapted = [i for i, rank in enumerate(ranks) if rank]
        lows = [low]
        if len(adapted) > 1:
            sizes = [ranks[i] for i in adapted]
            # Equal parts of whatever there is: an adapter at run time may have another rank.
            equal, count = len(set(sizes)) == 1 and self.fused, len(adapted)
            lows = g.ops(
                "Split", low, None if equal else sizes, outputs=count, axis=1, num_outputs=count if equal else None
            )
        made = list(products)
        for i, one in zip(adapted, lows, strict=True):
            made[i] = self._product(g, one, self.store.vector(g, f"{roles[i]}{_UP}", PART), made[i])
        return made

    def _ranks_of(self, roles: tuple[str, ...]) -> tuple[int, ...]:
        """Reads and stores their sides, the first time."""
        if roles not in self._ranks:
            sides = [self.low_rank(role) for role in roles]
            self._ranks[roles] = tuple(0 if side is None else len(side.down) for side in sides)
            if any(sides):
                self.store.keep_floats(f"{'+'.join(roles)}{_DOWN}", PART, self._laid(_joined(sides)))
            for role, side in zip(roles, sides, strict=True):
                if side is not None:
                    self.store.keep_floats(f"{role}{_UP}", PART, self._laid(side.up))
        return self._ranks[roles]

    def _laid(self, matrix: np.ndarray) -> np.ndarray:
        """(out, in) as `_product` reads it."""
        return matrix if self.fused else matrix.T

    def _product(self, g: Graph, x: Value, matrix: Value, added: Value | None = None) -> Value:
        if self.fused:
            return g.op("Gemm", x, matrix, added, transB=1)
        product = g.op("MatMul", x, matrix)
        return product if added is None else g.op("Add", added, product)


def _joined(sides: Iterable[LowRank | None]) -> np.ndarray:
    return np.concatenate([side.down for side in sides if side is not None])


def side_named(name: str, low_rank: Adapted) -> np.ndarray | None:
    """The side that ONNX Runtime's dialect stores under a name, of the adapter that `low_rank` gives; None for another
    name."""
    if name.endswith(_DOWN):
        return _joined(low_rank(role) for role in name.removesuffix(_DOWN).split("+"))
    side = low_rank(name.removesuffix(_UP)) if name.endswith(_UP) else None
    return None if side is None else side.up
