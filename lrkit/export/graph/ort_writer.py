"""The dialect `ort`: ONNX Runtime's own operators, fused and for integers.

Place in the pipeline: dialects.py has it in its table. ONNX Runtime never runs a loop's body once its condition is
false, so nothing has to be frozen.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lrkit.contract.quantized import Quantized
from lrkit.export.graph.nodes import CONTRIB, Graph, Value
from lrkit.export.graph.tower_attention import TowerAttention
from lrkit.export.graph.weight_store import Form
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Rotation, Writer
from lrkit.export.weights.integers import matmul_nbits

_LARGE = 1 << 14
"""Numbers from which on their largest is looked for in two steps."""
_ROWS = (256, 128, 64, 192, 96, 320, 160, 80, 48, 32)
"""Lengths of a row in the order of preference: near the square root of a vocabulary, and whole vectors."""


class OrtWriter(Writer):
    """Writes for ONNX Runtime."""

    fused: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bytes: dict[tuple[Value, int], tuple[Value, Value]] = {}
        """(activations, level of the graph) -> what `_rows_as_bytes` made of them."""

    @staticmethod
    def encode(quantized: Quantized) -> tuple[np.ndarray, ...]:
        """For MatMulNBits."""
        return matmul_nbits(quantized)

    def product(
        self, g: Graph, x: Value, role: str, encoded: list[Value], form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """In one node."""
        integers, scales, *zeros = encoded
        return g.op(
            "MatMulNBits", x, integers, scales, zeros[0] if zeros else None, None, bias, domain=CONTRIB,
            K=form.width, N=form.rows, bits=form.bits, block_size=form.block,
            accuracy_level=self.target.int4.accuracy_level,
        )  # fmt: skip

    def product_by_row(
        self, g: Graph, x: Value, role: str, integers: Value, scales: Value, form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """Both sides as bytes."""
        rounded, largest = self._rows_as_bytes(g, x)
        unit, zero, scales = np.array(1 / 127, np.float32), np.array(128, np.uint8), g.to_float32(scales)
        product = g.op("MatMulIntegerToFloat", rounded, integers, unit, scales, zero, domain=CONTRIB)
        product = g.to_floats(g.op("Mul", product, largest))
        return product if bias is None else g.op("Add", product, bias)

    def _rows_as_bytes(self, g: Graph, x: Value) -> tuple[Value, Value]:
        """x (S, in) as bytes around 128, and the largest of each row, (S, 1), which is 127 off. Made once for all
        products of x.

        Each token by its own: where one is a hundred times the others, as tokens of published towers are, a scale for
        all would leave nothing of them. ONNX Runtime 1.32 is 20 times slower with signed bytes on both sides.
        """
        if (x, g.level) not in self._bytes:
            wide = g.to_float32(x)
            largest = g.op("ReduceMax", g.op("Abs", wide), [1], keepdims=1)
            largest = g.op("Max", largest, np.array(1e-30, np.float32))
            steps = g.op("Div", wide, g.op("Mul", largest, np.array(1 / 127, np.float32)))
            rounded = g.op("QuantizeLinear", steps, np.array(1, np.float32), np.array(128, np.uint8))
            self._bytes[x, g.level] = rounded, largest
        return self._bytes[x, g.level]

    def rows(self, g: Graph, integers: Value, scales: Value, ids: Value) -> Value:
        """Only the rows that are looked up become floats."""
        scales = g.op("Gather", scales, ids, axis=0)
        rows = g.cast(g.op("Gather", integers, ids, axis=0), self.floats)
        return g.op("Mul", rows, g.op("Unsqueeze", scales, [1]))

    def embed(self, g: Graph, ids: Value) -> Value:
        """Of four bits in one node."""
        packed = self.store.packed_rows(g, "embedding")
        if packed is None:
            return super().embed(g, ids)
        if packed.form is None:
            return g.op("Gather", packed.values[0], ids, axis=0)
        rows = g.op(
            "GatherBlockQuantized", packed.values[0], ids, packed.values[1], domain=CONTRIB, gather_axis=0,
            quantize_axis=2, bits=4, block_size=packed.form.block,
        )  # fmt: skip
        return g.op("Reshape", rows, [-1, packed.form.width])

    def pixels(self, g: Graph, patches: Value) -> Value:
        """In one node."""
        unit = np.array(PIXEL_UNIT, self.floats.numpy())
        return g.op("DequantizeLinear", patches, unit, np.array(PIXEL_CENTRE, np.uint8))

    def choosable(self, g: Graph, windows: Value) -> Value:
        """The bytes themselves."""
        return windows

    def chosen_pixels(self, g: Graph, choosable: Value, index: Value) -> Value:
        """Only what is chosen becomes numbers."""
        return self.pixels(g, g.op("Gather", choosable, index, axis=0))

    def of_valid(
        self, g: Graph, valid: Value, index: Value, make: Callable[[Value], Value], blank: np.ndarray
    ) -> Value:  # fmt: skip
        """Of the valid slots alone, so that none costs next to nothing. A branch would cost nothing, but inside a loop
        ONNX Runtime 1.32 does not pack the weights that it reads: a tower then takes four times as long."""
        count = g.op("ReduceSum", g.cast(valid, ir.DataType.INT64), [0], keepdims=1)
        rows = make(g.op("Slice", index, [0], count, [0]))
        return g.op("Slice", g.op("Concat", rows, blank.astype(self.floats.numpy()), axis=0), [0], [len(blank)], [0])

    def root_mean_square(self, g: Graph, x: Value, weight: Value, epsilon: float) -> Value:
        """In one node."""
        return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)

    def scaled(self, g: Graph, x: Value, length: float, width: int) -> Value:
        """The same as a root-mean-square norm with equal weights, in one node."""
        tiny = float(np.finfo(np.float32).tiny)
        weight = np.full(width, length / width**0.5, self.floats.numpy())
        return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=tiny, stash_type=1)

    def add_norm(self, g: Graph, x: Value, y: Value, role: str, many: bool) -> tuple[Value, Value]:
        """In one node, but for many rows on a CPU."""
        # ONNX Runtime 1.32's fused norm goes through many rows slower than its sum and its norm do (128 rows of 1536 on
        # one thread: 272 against 153 microseconds); with few, one node less wins. A GPU starts a kernel for each.
        if self.norms.kind != "rms" or (many and self.target.provider == "cpu"):
            return super().add_norm(g, x, y, role, many)
        out = g.ops(
            "SkipSimplifiedLayerNormalization", x, y, self.vector(g, role), outputs=4, domain=CONTRIB,
            epsilon=self.norms.epsilon,
        )  # fmt: skip
        for unread in out[1:3]:  # a named output is allocated every time
            unread.name = ""
        return out[0], out[3]

    def softmax(self, g: Graph, x: Value) -> Value:
        """In one node."""
        return g.op("Softmax", x, axis=-1)

    def largest(self, g: Graph, x: Value, count: int) -> Value:
        """Of a published vocabulary: first in which row of a rectangle, then where in the row."""
        # ONNX Runtime 1.32's ArgMax takes 0.39 ms for 151,936 numbers, its ReduceMax of 1,187 rows and the rest 0.10.
        row = next((size for size in _ROWS if count % size == 0), None)
        if count < _LARGE or row is None or self.target.provider != "cpu":
            return super().largest(g, x, count)
        rows = g.op("Reshape", g.to_float32(x), [-1, row])
        best = g.op("ArgMax", g.op("ReduceMax", rows, [1], keepdims=0), axis=0, keepdims=1)
        within = g.op("ArgMax", g.op("Gather", rows, best, axis=0), axis=-1, keepdims=0)
        return g.op("Add", g.op("Mul", best, [row]), within)

    def scores(self, g: Graph, query: Value, keys: Value) -> Value:
        """In one node."""
        return g.op("FusedMatMul", query, keys, domain=CONTRIB, transB=1)

    def attention_by_picture(
        self, g: Graph, parts: tuple[Value, Value, Value], picture: Value, num_heads: int, scale: float
    ) -> Value:  # fmt: skip
        """Fused, picture by picture: no scores of pairs from two pictures, none kept in memory."""
        return TowerAttention(scale, num_heads, self.target.provider == "cpu").write(g, parts, picture)

    def gate_and_up(
        self, g: Graph, product: Callable[[str], Value], shape: tuple[int, int], part: str
    ) -> tuple[Value, Value]:
        """By one matrix in MatMulNBits, by a matrix each elsewhere."""
        # MatMulNBits rounds its input each time, and its threads wait for each other: of a layer's feed-forward part
        # (1536 to 8960 and back, one row) two products took 2.2 ms and one with a split 2.0, on two threads 2.9 and
        # 2.3. Floats of one row gain nothing, and a split of many rows is copied.
        scheme = self.store.scheme_of(part, shape)
        if scheme is None or scheme.by_row:
            return product("gate"), product("up")
        gate, up = g.ops("Split", product("gate_up"), [shape[0]] * 2, outputs=2, axis=-1)
        return gate, up

    def silu(self, g: Graph, x: Value) -> Value:
        """In one node."""
        return g.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)

    def rotation(self, g: Graph, angles: Value) -> Rotation:
        """Tables (S, W / 2)."""
        return Rotation(g.to_floats(g.op("Cos", angles)), g.to_floats(g.op("Sin", angles)))

    def head_rotation(self, g: Graph, angles: Value, tokens: int, heads: int) -> Rotation:
        """Tables with a row for each head of each token."""
        rows = self.rotation(g, g.op("Reshape", angles, [tokens * heads, -1]))
        return replace(rows, numbers=g.value(np.arange(tokens * heads).reshape(tokens, heads)))

    def rotate(self, g: Graph, x: Value, rotation: Rotation, head_width: int) -> Value:
        """In one node."""
        numbers = [0] if rotation.numbers is None else rotation.numbers
        return g.op("RotaryEmbedding", x, numbers, rotation.cos, rotation.sin, domain=CONTRIB)

    def keep(self, g: Graph, alive: Value | None, new: Value, old: Value, logical: bool = False) -> Value:
        """Always `new`."""
        return new

    def still(self, g: Graph, alive: Value, going: Value) -> Value:
        """Always `going`."""
        return going
