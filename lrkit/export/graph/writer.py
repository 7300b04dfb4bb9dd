"""Writes a matrix, a norm, a rotation or a frozen state: the one place where dialects and precisions differ.

    ort_writer.py        ONNX Runtime: MatMulNBits for integers, fused norms and rotations of its contrib domain
    standard_writer.py   standard operators only, as TensorRT reads them: DequantizeLinear for integers, norms and
                         rotations spelled out, states frozen once halted

Place in the pipeline: layers.py, routing_nodes.py and stack.py write through a `Writer`, which takes weights from a
`WeightStore`; dialects.py is the table of dialects.

Legend: S tokens, D width, H query and key heads together, G key heads, N rows of a key head, W head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lrkit.contract.quantized import Quantized
from lrkit.export.graph.branches import Branches
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.saving import WeightFile
from lrkit.export.graph.weight_store import Form, Made, Matrix, WeightStore, none_made
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm
from lrkit.export.weights.low_rank import Adapted, nothing_added
from lrkit.export.weights.quantizers.quantizer import Calibrate, uncalibrated

PIXEL_CENTRE, PIXEL_UNIT = 128, 1 / 64
"""A byte b of a picture enters a program as (b - centre) * unit, -2 to 2, as `ImageGeometry` normalises it but for a
factor and an offset per colour, which the tower's first matrix takes over."""


@dataclass(frozen=True)
class Rotation:
    """cos and sin of some tokens, in the form that the dialect's rotation reads; rows are tokens."""

    cos: Value
    sin: Value
    numbers: Value | None = None
    """In ONNX Runtime the row of each token's each head, (tokens, heads), or of the first token, [1]; None: row 0."""

    def rows(self, g: Graph, index: Value) -> "Rotation":
        """Those of the tokens at `index`, counted from the first token's row."""
        index = index if self.numbers is None else g.op("Add", index, self.numbers)
        return Rotation(g.op("Gather", self.cos, index, axis=0), g.op("Gather", self.sin, index, axis=0))


class Writer(ABC):
    """Writes operations on weights, and those for which a dialect has a node of its own."""

    fused: ClassVar[bool]
    """Whether ONNX Runtime's own operators may be used, also by the traced vision tower."""

    def __init__(
        self, target: Target, read: Callable[[str], np.ndarray], norms: Norm, file: WeightFile | None = None,
        calibrate: Calibrate = uncalibrated, made: Made = none_made, low_rank: Adapted = nothing_added,
    ) -> None:  # fmt: skip
        """`read` gives a weight by role as float32, matrices as (out, in); `norms` says which the model has; `file`
        takes weights that are too many to be held; `calibrate` tells quantizers what a matrix is multiplied with, and
        `made` gives integers that need not be made again; `low_rank` gives what an adapter adds to a matrix."""
        self.target, self.norms = target, norms
        self.store = WeightStore(target, read, self.encode, file, calibrate, made)
        self.branches = Branches(self.store, self.fused, low_rank)

    @property
    def floats(self) -> ir.DataType:
        """Type of the activations."""
        return self.store.floats

    def vector(self, g: Graph, role: str, part: str = "layers") -> Value:
        """A weight in the activations' type, as it is."""
        return self.store.vector(g, role, part)

    def linear(
        self, g: Graph, x: Value, role: str, bias: Value | None = None, part: str = "layers",
        given: np.ndarray | None = None,
    ) -> Value:  # fmt: skip
        """x (S, in) times the matrix `role` (out, in), plus bias (out): (S, out). `given` is the matrix, where the
        source does not have it (the traced tower's). What an adapter adds, `branches` knows."""
        matrix = self.store.matrix(g, role, part, given)
        if matrix.form is None:
            return g.op("Gemm", x, *matrix.values, bias, transB=1)
        if matrix.form.by_row:
            integers, scales = matrix.values
            return self.product_by_row(g, x, role, integers, scales, matrix.form, bias)
        product = self.product(g, x, role, matrix.values, matrix.form, bias)
        return product if matrix.constants is None else self._with_constants(g, x, product, matrix)

    def _with_constants(self, g: Graph, x: Value, product: Value, matrix: Matrix) -> Value:
        """What is added to all weights of a block is multiplied with the sum of what the block is."""
        assert matrix.form is not None and matrix.constants is not None
        block = matrix.form.block
        sums = g.op("ReduceSum", g.op("Reshape", x, [-1, matrix.form.width // block, block]), [2], keepdims=0)
        return g.op("Add", product, g.op("MatMul", sums, matrix.constants))

    def embed(self, g: Graph, ids: Value) -> Value:
        """Rows of the token embedding: (S,) -> (S, D)."""
        if (blocks := self.store.rows_in_blocks(g, "embedding")) is not None:
            return self._rows_of_blocks(g, blocks, ids)
        table, *scales = self.store.rows(g, "embedding")
        return self.rows(g, table, scales[0], ids) if scales else g.op("Gather", table, ids, axis=0)

    def _rows_of_blocks(self, g: Graph, blocks: Matrix, ids: Value) -> Value:
        """Only the rows that are looked up become floats."""
        assert blocks.form is not None
        form, (table, scales) = blocks.form, blocks.values
        rows = g.cast(g.op("Gather", table, ids, axis=0), self.floats)
        rows = g.op("Reshape", rows, [-1, form.width // form.block, form.block])
        rows = g.op("Mul", rows, g.op("Unsqueeze", g.op("Gather", scales, ids, axis=0), [2]))
        if blocks.constants is not None:
            rows = g.op("Add", rows, g.op("Unsqueeze", g.op("Gather", blocks.constants, ids, axis=0), [2]))
        return g.op("Reshape", rows, [-1, form.width])

    def norm(self, g: Graph, x: Value, role: str) -> Value:
        """The model's norm `role` of (S, D)."""
        weight, epsilon = self.vector(g, role), self.norms.epsilon
        if self.norms.kind == "rms":
            return self.root_mean_square(g, x, weight, epsilon)
        return g.op("LayerNormalization", x, weight, self.vector(g, f"{role}.bias"), axis=-1, epsilon=epsilon)

    def head_norm(self, g: Graph, x: Value, role: str, norm: Norm, width: int) -> Value:
        """The norm `role` of heads (S, G, N, W) over their width, with weights (and a bias) of every head (G, N, W)."""
        # The fused norms read weights of one head only.
        one = g.value(np.ones(width, self.floats.numpy()))
        if norm.kind == "rms":
            return g.op("Mul", self.root_mean_square(g, x, one, norm.epsilon), self.vector(g, role))
        normed = g.op("LayerNormalization", x, one, np.zeros(width, self.floats.numpy()), axis=-1, epsilon=norm.epsilon)
        return g.op("Add", g.op("Mul", normed, self.vector(g, role)), self.vector(g, f"{role}.bias"))

    def add_norm(self, g: Graph, x: Value, y: Value, role: str, many: bool) -> tuple[Value, Value]:
        """(norm of x + y, x + y); `many` says that there are many rows."""
        total = g.op("Add", x, y)
        return self.norm(g, total, role), total

    @staticmethod
    @abstractmethod
    def encode(quantized: Quantized) -> tuple[np.ndarray, ...]:
        """(integers, scales), and offsets where there are some, of a rounded matrix as `product` reads them."""

    @abstractmethod
    def product(
        self, g: Graph, x: Value, role: str, encoded: list[Value], form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """x times a rounded matrix, which `encode` gave, plus bias."""

    @abstractmethod
    def product_by_row(
        self, g: Graph, x: Value, role: str, integers: Value, scales: Value, form: Form, bias: Value | None
    ) -> Value:  # fmt: skip
        """The same for int8 (in, out) with one scale per output, (out,)."""

    @abstractmethod
    def rows(self, g: Graph, integers: Value, scales: Value, ids: Value) -> Value:
        """Rows of a matrix with one scale for each."""

    @abstractmethod
    def pixels(self, g: Graph, patches: Value) -> Value:
        """Bytes of pictures, uint8, as numbers around zero."""

    @abstractmethod
    def choosable(self, g: Graph, windows: Value) -> Value:
        """Bytes (V, M, C) in the form from which `chosen_pixels` takes some; made once, outside the loop that does."""

    @abstractmethod
    def chosen_pixels(self, g: Graph, choosable: Value, index: Value) -> Value:
        """Those at `index` (K,), as `pixels` gives them."""

    @abstractmethod
    def of_valid(
        self, g: Graph, valid: Value, index: Value, make: Callable[[Value], Value], blank: np.ndarray
    ) -> Value:  # fmt: skip
        """Rows shaped as `blank`, equally many for each slot: what `make` writes of the slots' `index` (K,). Valid
        slots come first, and nobody reads the rows of the others."""

    @abstractmethod
    def root_mean_square(self, g: Graph, x: Value, weight: Value, epsilon: float) -> Value:
        """The norm of that name over the last axis, (..., D)."""

    @abstractmethod
    def scaled(self, g: Graph, x: Value, length: float, width: int) -> Value:
        """(S, width), each row with the Euclidean norm `length`."""

    @abstractmethod
    def softmax(self, g: Graph, x: Value) -> Value:
        """Of a vector (N,)."""

    def largest(self, g: Graph, x: Value, count: int) -> Value:
        """Where the largest of (1, count) numbers is, [1]; the first, where several are equal."""
        return g.op("ArgMax", x, axis=-1, keepdims=0)

    @abstractmethod
    def scores(self, g: Graph, query: Value, keys: Value) -> Value:
        """Products of queries (..., S, W) with keys (..., N, W): (..., S, N)."""

    @abstractmethod
    def attention_by_picture(
        self, g: Graph, parts: tuple[Value, Value, Value], picture: Value, num_heads: int, scale: float
    ) -> Value:  # fmt: skip
        """Attention of a tower, queries, keys and values (1, H, N, W), in which patches see those of their own picture:
        (N, H W). `picture` (N,) numbers the pictures from 0 in the order of their patches."""

    @abstractmethod
    def gate_and_up(
        self, g: Graph, product: Callable[[str], Value], shape: tuple[int, int], part: str
    ) -> tuple[Value, Value]:
        """Both products of a gated feed-forward part, each (S, inner); `product` multiplies by its matrix of a name,
        which is one of `part`. `shape` is (inner, D)."""

    @abstractmethod
    def silu(self, g: Graph, x: Value) -> Value:
        """x sigmoid(x)."""

    @abstractmethod
    def rotation(self, g: Graph, angles: Value) -> Rotation:
        """From angles (S, W / 2), float32."""

    @abstractmethod
    def head_rotation(self, g: Graph, angles: Value, tokens: int, heads: int) -> Rotation:
        """From angles (tokens, 1, heads, W / 2), float32: each head of each token turns by its own."""

    @abstractmethod
    def rotate(self, g: Graph, x: Value, rotation: Rotation, head_width: int) -> Value:
        """Rotary embedding of (any, any, S, W)."""

    @abstractmethod
    def keep(self, g: Graph, alive: Value | None, new: Value, old: Value, logical: bool = False) -> Value:
        """`new` while alive, `old` afterwards; `logical` says that both are bool."""

    @abstractmethod
    def still(self, g: Graph, alive: Value, going: Value) -> Value:
        """Whether a loop goes on, (): `going`, unless it had stopped before."""
