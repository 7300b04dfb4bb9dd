"""The side branches of an adapter that is kept apart: y = W x + B (A x), in floats, beside matrices of any form.

Place in the pipeline: writer.py adds them to the products of layers.py, with what `Source.low_rank` gives.

Matrices that read the same x share one product: their A's are one matrix. Their B's stay apart where the products do,
because a block for each in one matrix would be read with all its zeros: of gate and up, 1536 to 8960 at rank 32, that
took 1.33 times as long as the int4 matrix alone, and two products take 1.15 (one row, ONNX Runtime 1.32, one thread).

Legend: S tokens, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.weight_store import WeightStore
from lrkit.export.weights.low_rank import Adapted, LowRank, nothing_added

PART = "adapter"
"""Part of the model that its bytes are counted under."""


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
        name = f"{'+'.join(roles)}.adapter.A"
        low = self._product(g, x, self.store.vector(g, name, PART))
        adapted = [i for i, rank in enumerate(ranks) if rank]
        lows = [low]
        if len(adapted) > 1:
            lows = g.ops("Split", low, [ranks[i] for i in adapted], outputs=len(adapted), axis=1)
        made = list(products)
        for i, one in zip(adapted, lows, strict=True):
            made[i] = self._product(g, one, self.store.vector(g, f"{roles[i]}.adapter.B", PART), made[i])
        return made

    def _ranks_of(self, roles: tuple[str, ...]) -> tuple[int, ...]:
        """Reads and stores their sides, the first time."""
        if roles not in self._ranks:
            sides = {role: self.low_rank(role) for role in roles}
            found: dict[str, LowRank] = {role: side for role, side in sides.items() if side is not None}
            if found:
                downs = np.concatenate([side.down for side in found.values()])
                self.store.keep_floats(f"{'+'.join(roles)}.adapter.A", PART, self._laid(downs))
            for role, side in found.items():
                self.store.keep_floats(f"{role}.adapter.B", PART, self._laid(side.up))
            self._ranks[roles] = tuple(0 if side is None else len(side.down) for side in sides.values())
        return self._ranks[roles]

    def _laid(self, matrix: np.ndarray) -> np.ndarray:
        """(out, in) as `_product` reads it."""
        return matrix if self.fused else matrix.T

    def _product(self, g: Graph, x: Value, matrix: Value, added: Value | None = None) -> Value:
        if self.fused:
            return g.op("Gemm", x, matrix, added, transB=1)
        product = g.op("MatMul", x, matrix)
        return product if added is None else g.op("Add", added, product)
