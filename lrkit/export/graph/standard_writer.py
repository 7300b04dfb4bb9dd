"""The dialect `standard`: standard ONNX operators only, in the forms that TensorRT's parser and builder take.

Place in the pipeline: dialects.py has it in its table. TensorRT may run a loop's body once more than its condition
says, so a state is frozen once it has halted.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from lrkit.contract.quantized import Quantized
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.weight_store import Form
from lrkit.export.graph.writer import PIXEL_CENTRE, PIXEL_UNIT, Rotation, Writer
from lrkit.export.weights.integers import dequantize_linear

_LEAST = 1e-30
"""What a row of zeros is divided by."""


class StandardWriter(Writer):
    """Writes what every engine reads."""

    fused: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bytes: dict[tuple[Value, int], tuple[Value, Value]] = {}
        """(activations, level of the graph) -> what `_rows_as_bytes` made of them."""

    @staticmethod
    def encode(quantized: Quantized) -> tuple[np.ndarray, ...]:
        """For DequantizeLinear."""
        return dequantize_linear(quantized)

    def product(
        self, g: Graph, x: Value, role: str, encoded: list[Value], form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """Unpacked, then multiplied; the engine makes one kernel of both."""
        integers, scales, *zeros = encoded
        integers = self.store.own_name(g, f"{role}.{form.name}", integers)
        if form.floats:
            scales, zeros = g.early("DequantizeLinear", scales, *zeros), []
        weight = g.early("DequantizeLinear", integers, scales, *zeros, axis=0, block_size=form.block)
        return self._times(g, x, weight, bias)

    def product_by_row(
        self, g: Graph, x: Value, role: str, integers: Value, scales: Value, form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """For OpenVINO on a CPU both sides are bytes; elsewhere activations stay float."""
        integers = self.store.own_name(g, f"{role}.{form.name}", integers)
        weight = g.early("DequantizeLinear", integers, scales, axis=1)
        if form.floats or not self.target.multiplies_bytes:
            return self._times(g, x, weight, bias)
        rounded, largest = self._rows_as_bytes(g, x)
        product = g.to_floats(g.op("Mul", g.op("MatMul", rounded, g.to_float32(weight)), largest))
        return product if bias is None else g.op("Add", product, bias)

    def _rows_as_bytes(self, g: Graph, x: Value) -> tuple[Value, Value]:
        """x (S, in) divided by the largest of its row and rounded to multiples of 1/127, and these largest, (S, 1).

        Each token is rounded by its own largest, and yet the scale of the bytes is a constant: without one OpenVINO
        multiplies floats. Made once for all products of x.
        """
        if (x, g.level) not in self._bytes:
            wide, unit, zero = g.to_float32(x), np.array(1 / 127, np.float32), np.array(0, np.int8)
            ends = g.op("ReduceMax", wide, [1], keepdims=1), g.op("Neg", g.op("ReduceMin", wide, [1], keepdims=1))
            largest = g.op("Max", *ends, np.array(_LEAST, np.float32))
            if self.target.openvino is not None and self.target.openvino.precision == "bf16":
                # OpenVINO 2026.4 leaves all in float32 that lies between an output and the last products before it. By
                # way of these factors that would be a whole tower but its products; so they come out of one.
                largest = g.op("MatMul", largest, np.ones((1, 1), np.float32))
            steps = g.op("QuantizeLinear", g.op("Div", wide, largest), unit, zero)
            self._bytes[x, g.level] = g.op("DequantizeLinear", steps, unit, zero), largest
        return self._bytes[x, g.level]

    @staticmethod
    def _times(g: Graph, x: Value, weight: Value, bias: Value | None) -> Value:
        product = g.op("MatMul", x, weight)
        return product if bias is None else g.op("Add", product, bias)

    def rows(self, g: Graph, integers: Value, scales: Value, ids: Value) -> Value:
        """TensorRT takes 8-bit constants only in front of DequantizeLinear."""
        return g.op("Gather", g.early("DequantizeLinear", integers, scales, axis=0), ids, axis=0)

    def pixels(self, g: Graph, patches: Value) -> Value:
        """Spelled out."""
        centred = g.op("Sub", g.cast(patches, self.floats), float(PIXEL_CENTRE))
        return g.op("Mul", centred, PIXEL_UNIT)

    def choosable(self, g: Graph, windows: Value) -> Value:
        """Numbers already: TensorRT cannot gather bytes."""
        return self.pixels(g, windows)

    def chosen_pixels(self, g: Graph, choosable: Value, index: Value) -> Value:
        """Gathered."""
        return g.op("Gather", choosable, index, axis=0)

    def of_valid(
        self, g: Graph, valid: Value, index: Value, make: Callable[[Value], Value], blank: np.ndarray
    ) -> Value:  # fmt: skip
        """Of all slots: shapes that depend on values are more than the engines take."""
        return make(index)

    def root_mean_square(self, g: Graph, x: Value, weight: Value, epsilon: float) -> Value:
        """Spelled out, in float32."""
        wide = g.to_float32(x)
        mean = g.op("ReduceMean", g.op("Mul", wide, wide), [-1], keepdims=1)
        length = g.op("Sqrt", g.op("Add", mean, np.array(epsilon, np.float32)))
        return g.op("Mul", g.to_floats(g.op("Div", wide, length)), weight)

    def scaled(self, g: Graph, x: Value, length: float, width: int) -> Value:
        """Spelled out, in float32."""
        wide = g.to_float32(x)
        tiny = np.array(np.finfo(np.float32).tiny, np.float32)
        norm = g.op("Max", g.op("ReduceL2", wide, [1], keepdims=1), tiny)
        return g.to_floats(g.op("Mul", wide, g.op("Div", np.array(length, np.float32), norm)))

    def softmax(self, g: Graph, x: Value) -> Value:
        """Of a matrix with one row: TensorRT has no Softmax of one dimension."""
        return g.op("Squeeze", g.op("Softmax", g.op("Unsqueeze", x, [0]), axis=-1), [0])

    def scores(self, g: Graph, query: Value, keys: Value) -> Value:
        """With the keys transposed."""
        return g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))

    def attention_by_picture(
        self, g: Graph, parts: tuple[Value, Value, Value], picture: Value, num_heads: int, scale: float
    ) -> Value:  # fmt: skip
        """Never asked: towers are traced with attention spelled out where `fused` is off."""
        raise AssertionError("a tower for this dialect spells its attention out")

    def gate_and_up(
        self, g: Graph, product: Callable[[str], Value], shape: tuple[int, int], part: str
    ) -> tuple[Value, Value]:
        """By one matrix: TensorRT-RTX 1.7.1 fails to build two int4 products of one operand (Myelin: loops.cpp, loop
        is null). By two where OpenVINO multiplies bytes: it copies what it splits."""
        scheme = self.store.scheme_of(part, shape)
        if scheme is not None and scheme.by_row and self.target.multiplies_bytes:
            return product("gate"), product("up")
        gate, up = g.ops("Split", product("gate_up"), [shape[0]] * 2, outputs=2, axis=-1)
        return gate, up

    def silu(self, g: Graph, x: Value) -> Value:
        """Spelled out."""
        return g.op("Mul", x, g.op("Sigmoid", x))

    def rotation(self, g: Graph, angles: Value) -> Rotation:
        """Tables (S, W), as `rotate` multiplies with them."""
        cos, sin = g.to_floats(g.op("Cos", angles)), g.to_floats(g.op("Sin", angles))
        return Rotation(g.op("Concat", cos, cos, axis=-1), g.op("Concat", g.op("Neg", sin), sin, axis=-1))

    def head_rotation(self, g: Graph, angles: Value, tokens: int, heads: int) -> Rotation:
        """Tables of the angles' own shape."""
        return self.rotation(g, angles)

    def rotate(self, g: Graph, x: Value, rotation: Rotation, head_width: int) -> Value:
        """x cos plus x with its halves swapped times sin, whose first half is negative."""
        half = head_width // 2
        swapped = g.op("Gather", x, [*range(half, head_width), *range(half)], axis=-1)
        return g.op("Add", g.op("Mul", x, rotation.cos), g.op("Mul", swapped, rotation.sin))

    def keep(self, g: Graph, alive: Value | None, new: Value, old: Value, logical: bool = False) -> Value:
        """A choice by `alive`, where the state has it."""
        if alive is None:
            return new
        if not logical:
            return g.op("Where", alive, new, old)
        # ONNX Runtime has no Where on bool.
        return g.op("Or", g.op("And", alive, new), g.op("And", g.op("Not", alive), old))

    def still(self, g: Graph, alive: Value, going: Value) -> Value:
        """Both."""
        return g.op("And", alive, going)
