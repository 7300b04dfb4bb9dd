"""Attention of a vision tower in ONNX Runtime: fused, and picture by picture.

Place in the pipeline: the node that `Seen` (tower_pieces.py) puts into a trace -> tracing.py -> `TowerAttention`.

One picture, the usual case, needs no mask. Of several each is a turn of a loop, so that the work is that of their pairs
of patches: four pictures of 256 patches take a quarter of what all 1,024 together would.

Legend: N patches, n those of one picture, H heads, W head width, E = H W.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lrkit.export.graph.nodes import CONTRIB, Carried, Graph, Kind, State, Value

Heads = tuple[Value, Value, Value]
"""Queries, keys and values."""
_INT64 = ir.DataType.INT64


@dataclass(frozen=True)
class TowerAttention:
    """One layer's."""

    scale: float
    """Multiplies the scores."""
    num_heads: int
    split: bool
    """Whether pictures go one by one: on a CPU. A GPU would wait for each; it takes a mask."""

    def write(self, g: Graph, heads: Heads, picture: Value) -> Value:
        """Heads (1, H, N, W) and each patch's picture (N,) -> (N, E)."""
        if not self.split:
            same = g.op("Equal", g.op("Unsqueeze", picture, [0]), g.op("Unsqueeze", picture, [1]))
            mask = g.op("Where", same, np.zeros((), np.float32), np.array(-1e30, np.float32))
            return self._fused(g, heads, g.op("Unsqueeze", mask, [0, 1]))
        last = g.op("Gather", picture, -1)
        kind: Kind = (g.floats, ("N", "E"))
        one = g.op("Equal", last, 0)
        return g.either(one, lambda inner: self._fused(inner, heads), self._each(heads, picture, last), kind)

    def _each(self, heads: Heads, picture: Value, last: Value) -> Callable[[Graph], Value]:
        def write(g: Graph) -> Value:
            def body(inner: Graph, number: Value, held: Carried) -> tuple[Value, Carried]:
                size = inner.op("ReduceSum", inner.cast(inner.op("Equal", picture, number), _INT64), [0], keepdims=1)
                end = inner.op("Add", held["start"], size)
                query, key, value = (inner.op("Slice", part, held["start"], end, [2]) for part in heads)
                mixed = inner.op("Concat", held["mixed"], self._fused(inner, (query, key, value)), axis=0)
                return inner.value(True), {"start": end, "mixed": mixed}

            width = g.op("Mul", g.shape_of(heads[0], 1), g.shape_of(heads[0], 3))
            empty = g.op("ConstantOfShape", g.op("Concat", [0], width, axis=0))
            state = {
                "start": State(g.value([0]), _INT64, (1,)),
                "mixed": State(empty, g.floats, ("n", "E")),
            }
            return g.loop(g.op("Add", last, 1), g.value(True), state, body)["mixed"]

        return write

    def _fused(self, g: Graph, heads: Heads, mask: Value | None = None) -> Value:
        """Every patch sees all: (1, H, n, W) -> (n, E). The node takes keys and values as they are, and queries with
        heads side by side."""
        query, key, value = heads
        rows = g.op("Reshape", g.op("Transpose", query, perm=[0, 2, 1, 3]), [0, 0, -1])
        # Its inputs: query, key, value, bias, key_padding_mask, attention_bias.
        bias = () if mask is None else (None, None, mask)
        mixed = g.op(
            "MultiHeadAttention", rows, key, value, *bias, domain=CONTRIB, num_heads=self.num_heads, scale=self.scale
        )  # fmt: skip
        return g.op("Squeeze", mixed, [0])
