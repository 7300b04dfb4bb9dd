"""How a matrix, a norm, a rotation or a frozen state is written: the one place where dialects and precisions differ.

    ort        ONNX Runtime: MatMulNBits for int4, fused norms and rotations of its contrib domain
    tensorrt   standard operators only: DequantizeLinear for int4, norms and rotations spelled out, states frozen once
    halted

Place in the pipeline: decoder.py, routing.py and program.py write through a `Dialect`, which takes weights from a
`WeightStore`.

Legend: S tokens, D width, H query and key heads together, W head width.
"""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace

import numpy as np
import onnx_ir as ir

from lrkit.export.graph.nodes import CONTRIB, Graph, Value
from lrkit.export.graph.saving import WeightFile
from lrkit.export.graph.weight_store import WeightStore
from lrkit.export.targets.target import Target
from lrkit.export.weights.int4 import dequantize_linear, matmul_nbits

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
        """Those of the tokens at `index`."""
        return Rotation(g.op("Gather", self.cos, index, axis=0), g.op("Gather", self.sin, index, axis=0))


@dataclass
class Dialect:
    """Writes operations on weights. `fetch` gives a weight by role as float32; matrices are (out, in)."""

    target: Target
    fetch: InitVar[Callable[[str], np.ndarray]]
    epsilon: float
    file: InitVar[WeightFile | None] = None
    """Where weights go that are too many to be held; None: all are held."""
    store: WeightStore = field(init=False)

    def __post_init__(self, fetch: Callable[[str], np.ndarray], file: WeightFile | None) -> None:
        self.store = WeightStore(self.target, fetch, matmul_nbits if self.ort else dequantize_linear, file)

    @property
    def ort(self) -> bool:
        """Whether ONNX Runtime's own operators may be used."""
        return self.target.dialect == "ort"

    @property
    def floats(self) -> ir.DataType:
        """Type of the activations."""
        return self.store.floats

    @property
    def quantizes_vision(self) -> bool:
        """Whether the tower's matrices become int4."""
        return self.target.precision == "int4" and self.target.int4.vision == "int4"

    def vector(self, g: Graph, role: str, part: str = "layers") -> Value:
        """A weight in the activations' type, as it is."""
        return self.store.vector(g, role, part)

    def linear(
        self, g: Graph, x: Value, role: str, bias: Value | None = None, part: str = "layers",
        given: np.ndarray | None = None,
    ) -> Value:  # fmt: skip
        """x (S, in) times the matrix `role` (out, in), plus bias (out): (S, out). `given` is the matrix, where the
        source does not have it (the traced tower's)."""
        matrix = self.store.matrix(g, role, part, given)
        form, names = matrix.form, matrix.values
        if form is None:
            return g.op("Gemm", x, *names, bias, transB=1)
        if self.ort:
            return g.op(
                "MatMulNBits", x, *names, None, None, bias, domain=CONTRIB, K=form.width, N=form.rows, bits=form.bits,
                block_size=form.block, accuracy_level=self.target.int4.accuracy_level,
            )  # fmt: skip
        integers = self.store.own_name(g, f"{role}.int{form.bits}", names[0])
        weight = g.early("DequantizeLinear", integers, names[1], axis=0, block_size=form.block)
        product = g.op("MatMul", x, weight)
        return product if bias is None else g.op("Add", product, bias)

    def pixels(self, g: Graph, patches: Value) -> Value:
        """Bytes of pictures, uint8, as numbers around zero."""
        if self.ort:
            unit = np.array(PIXEL_UNIT, self.floats.numpy())
            return g.op("DequantizeLinear", patches, unit, np.array(PIXEL_CENTRE, np.uint8))
        centred = g.op("Sub", g.cast(patches, self.floats), float(PIXEL_CENTRE))
        return g.op("Mul", centred, PIXEL_UNIT)

    def embed(self, g: Graph, ids: Value) -> Value:
        """Rows of the token embedding: (S,) -> (S, D)."""
        role = "embedding"
        if self.target.precision != "int4" or self.target.int4.embedding == "float":
            return g.op("Gather", self.vector(g, role, role), ids, axis=0)
        table, scale = self.store.rows(g, role)
        if not self.ort:  # TensorRT takes 8-bit constants only in front of this node
            return g.op("Gather", g.early("DequantizeLinear", table, scale, axis=0), ids, axis=0)
        scale = g.op("Gather", scale, ids, axis=0)
        rows = g.cast(g.op("Gather", table, ids, axis=0), self.floats)
        return g.op("Mul", rows, g.op("Unsqueeze", scale, [1]))

    def norm(self, g: Graph, x: Value, role: str) -> Value:
        """Root-mean-square norm of (S, D)."""
        weight = self.vector(g, role)
        if self.ort:
            return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.epsilon, stash_type=1)
        wide = g.to_float32(x)
        mean = g.op("ReduceMean", g.op("Mul", wide, wide), [-1], keepdims=1)
        length = g.op("Sqrt", g.op("Add", mean, np.array(self.epsilon, np.float32)))
        return g.op("Mul", g.to_floats(g.op("Div", wide, length)), weight)

    def scaled(self, g: Graph, x: Value, length: float, width: int) -> Value:
        """(S, width), each row with the Euclidean norm `length`."""
        tiny = float(np.finfo(np.float32).tiny)
        if self.ort:  # the same as a root-mean-square norm with equal weights, in one node
            weight = np.full(width, length / width**0.5, self.floats.numpy())
            return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=tiny, stash_type=1)
        wide = g.to_float32(x)
        norm = g.op("Max", g.op("ReduceL2", wide, [1], keepdims=1), np.array(tiny, np.float32))
        return g.to_floats(g.op("Mul", wide, g.op("Div", np.array(length, np.float32), norm)))

    def add_norm(self, g: Graph, x: Value, y: Value, role: str, many: bool) -> tuple[Value, Value]:
        """(norm of x + y, x + y); `many` says that there are many rows."""
        # ONNX Runtime 1.32's fused norm goes through many rows slower than its sum and its norm do (128 rows of 1536 on
        # one thread: 272 against 153 microseconds); with few, one node less wins. A GPU starts a kernel for each.
        if self.ort and not (many and self.target.provider == "cpu"):
            out = g.ops(
                "SkipSimplifiedLayerNormalization", x, y, self.vector(g, role), outputs=4, domain=CONTRIB,
                epsilon=self.epsilon,
            )  # fmt: skip
            for unread in out[1:3]:  # a named output is allocated every time
                unread.name = ""
            return out[0], out[3]
        total = g.op("Add", x, y)
        return self.norm(g, total, role), total

    def softmax(self, g: Graph, x: Value) -> Value:
        """Of a vector (N,). TensorRT has no Softmax of one dimension."""
        if self.ort:
            return g.op("Softmax", x, axis=-1)
        return g.op("Squeeze", g.op("Softmax", g.op("Unsqueeze", x, [0]), axis=-1), [0])

    def scores(self, g: Graph, query: Value, keys: Value) -> Value:
        """Products of queries (..., S, W) with keys (..., N, W): (..., S, N)."""
        if self.ort:
            return g.op("FusedMatMul", query, keys, domain=CONTRIB, transB=1)
        return g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))

    def gated(self, g: Graph, x: Value, number: int, inner: int) -> Value:
        """silu(x gate) * (x up) of layer `number`: (S, D) -> (S, inner)."""
        if self.ort:
            gate, up = (self.linear(g, x, f"{number}.{half}") for half in ("gate", "up"))
            return g.op("Mul", g.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), up)
        # One product: TensorRT-RTX 1.7.1 fails to build two int4 ones of one operand (Myelin: loops.cpp, loop is null).
        gate, up = g.ops("Split", self.linear(g, x, f"{number}.gate_up"), [inner, inner], outputs=2, axis=-1)
        return g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)

    def rotation(self, g: Graph, angles: Value) -> Rotation:
        """From angles (S, W / 2), float32."""
        cos, sin = g.to_floats(g.op("Cos", angles)), g.to_floats(g.op("Sin", angles))
        if self.ort:
            return Rotation(cos, sin)
        return Rotation(g.op("Concat", cos, cos, axis=-1), g.op("Concat", g.op("Neg", sin), sin, axis=-1))

    def head_rotation(self, g: Graph, angles: Value, tokens: int, heads: int) -> Rotation:
        """From angles (tokens, 1, heads, W / 2), float32: each head of each token turns by its own."""
        if not self.ort:
            return self.rotation(g, angles)
        rows = self.rotation(g, g.op("Reshape", angles, [tokens * heads, -1]))
        return replace(rows, numbers=g.value(np.arange(tokens * heads).reshape(tokens, heads)))

    def rotate(self, g: Graph, x: Value, rotation: Rotation, head_width: int) -> Value:
        """Rotary embedding of (any, any, S, W)."""
        if self.ort:
            numbers = [0] if rotation.numbers is None else rotation.numbers
            return g.op("RotaryEmbedding", x, numbers, rotation.cos, rotation.sin, domain=CONTRIB)
        half = head_width // 2
        swapped = g.op("Gather", x, [*range(half, head_width), *range(half)], axis=-1)
        return g.op("Add", g.op("Mul", x, rotation.cos), g.op("Mul", swapped, rotation.sin))

    def keep(self, g: Graph, alive: Value | None, new: Value, old: Value, logical: bool = False) -> Value:
        """`new` while alive, `old` afterwards. ONNX Runtime never runs a body once halted; TensorRT may, once."""
        if self.ort or alive is None:
            return new
        if not logical:
            return g.op("Where", alive, new, old)
        # ONNX Runtime has no Where on bool.
        return g.op("Or", g.op("And", alive, new), g.op("And", g.op("Not", alive), old))
