"""The weights of one program: each is read once, when it is first used, rounded where the target asks for integers,
named, and stored once for all graphs that use it.

A checkpoint's adapter is merged while a matrix is read (lrkit/export/weights/streaming.py), and so only once. A stored
weight lies in the `WeightFile`. Nothing of it stays in memory.

Place in the pipeline: writer.py asks for a vector or a matrix by its role; lrkit/export/weights/quantizers/ rounds.
"""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lrkit.contract.quantized import Quantized
from lrkit.contract.schemes import Scheme
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.saving import WeightFile
from lrkit.export.targets.target import Target
from lrkit.export.weights.integers import by_row, error_of
from lrkit.export.weights.quantizers.quantizer import Calibrate, quantized, quantized_rows, uncalibrated
from lrkit.export.weights.stored_integers import symmetric

CHUNKS = "chunks"
"""The layers' matrices as chunks of many tokens read them: those of `layers`, where they are none of their own."""
_MAY_BE_ONE = ("embedding", "head")
Encode = Callable[[Quantized], tuple[np.ndarray, ...]]
"""A matrix of integers -> (integers, scales), and offsets where it has them, as a dialect's operator reads them."""
Made = Callable[[str], Quantized | None]
"""Role of a matrix -> its integers, where they were made before (calibrated, or in the checkpoint)."""


def none_made(role: str) -> None:
    """All are yet to be made."""


def kind_of(made: Quantized, scheme: Scheme) -> str:
    """The scheme that integers are of: the target's, where nothing else was found in the checkpoint."""
    if made.bits == scheme.bits and (made.zeros is not None) == scheme.offsets:
        return scheme.name
    return "int8" if made.bits == 8 else "int4" if made.zeros is None else "int4-offsets"


@dataclass(frozen=True)
class Form:
    """How a rounded matrix (rows, width) is stored: `bits` per weight, one scale for `block` of them along the row."""

    bits: int
    block: int
    rows: int
    width: int
    by_row: bool = False
    """One scale for the whole row; `Scheme.by_row` says what else."""
    constants: bool = False
    """Whether something is added to all weights of a block."""
    floats: bool = False
    """`Scheme.floats`."""

    @property
    def name(self) -> str:
        """Behind the matrix's own, where it is stored."""
        if self.floats:
            return "fp8" if self.by_row else "nvfp4"
        return "w8a8" if self.by_row else f"int{self.bits}"


@dataclass(frozen=True)
class Matrix:
    """A stored matrix as one graph reads it."""

    values: list[Value]
    """The floats (out, in); or what `Encode` gives."""
    form: Form | None
    """None: floats."""
    constants: Value | None = None
    """(blocks, out), or (rows, blocks) of a table that is looked up: added to every weight of a block."""


@dataclass
class WeightStore:
    """Reads, rounds, names and stores. `read` gives a weight by role as float32; matrices are (out, in)."""

    target: Target
    read: Callable[[str], np.ndarray]
    encode: Encode
    file: WeightFile | None = None
    """Where weights go that are too many to be held; None: all are held."""
    calibrate: Calibrate = uncalibrated
    """What a matrix is rounded by, where its quantizer wants to know."""
    made: Made = none_made
    """Integers that need not be made again."""
    part_bytes: dict[str, int] = field(default_factory=dict)
    """Weight bytes by part: filled as weights are stored."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative error of each rounded matrix."""
    _tensors: dict[str, list[ir.TensorProtocol]] = field(default_factory=dict)
    _values: dict[str, list[Value]] = field(default_factory=dict)
    """The same in the graph that is being written."""
    _forms: dict[tuple[str, str], Form | None] = field(default_factory=dict[tuple[str, str], Form | None])
    """Matrix that was to be rounded, and scheme -> its form; None where `quantized` left it float."""
    _shared: dict[Hashable, ir.TensorProtocol] = field(default_factory=dict[Hashable, ir.TensorProtocol])
    """Packed integers that may be used once more: embedding and head are one matrix in many models."""
    _kinds: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """By part: bytes by how they are held."""

    @property
    def floats(self) -> ir.DataType:
        """Type of the weights that stay float, of scales, and of the activations."""
        return ir.DataType.FLOAT16 if self.target.computes_fp16 else ir.DataType.FLOAT

    def vector(self, g: Graph, role: str, part: str) -> Value:
        """A weight in the activations' type, as it is."""
        return self._value(g, role, part, lambda: [self._as_floats(self.read(role))])[0]

    def array(self, g: Graph, role: str, array: np.ndarray, part: str) -> Value:
        """An array that is no weight of the source, as it is; the caller asks once per role."""
        return self._value(g, role, part, lambda: [array])[0]

    def keep_floats(self, role: str, part: str, array: np.ndarray) -> None:
        """Stores an array under a name of the caller's, in the activations' type, once; `vector` then finds it."""
        if role not in self._tensors:
            self._keep(role, part, [self._as_floats(array)])

    def scheme_of(self, part: str, shape: tuple[int, int]) -> Scheme | None:
        """How a matrix of this part and shape becomes integers; None where it stays float."""
        scheme = self.target.scheme_of(part)
        if part == CHUNKS and (scheme is None or min(shape) < scheme.least):
            return self.target.scheme_of("layers")
        return scheme

    def matrix(self, g: Graph, role: str, part: str, given: np.ndarray | None = None) -> Matrix:
        """The matrix `role` (out, in), rounded where the target rounds `part`. `given` is the matrix where the source
        does not have it."""
        scheme = self.target.scheme_for(role, part)
        if scheme is None and part == CHUNKS:
            return self.matrix(g, role, "layers")
        if scheme is not None and (role, scheme.name) not in self._forms:
            weight = self.read(role) if given is None else given
            self._round(role, scheme, part, self._as_layers_hold(role, weight) if part == CHUNKS else weight)
        form = self._forms[role, scheme.name] if scheme is not None else None
        if form is None:
            return self.matrix(g, role, "layers") if part == CHUNKS else Matrix([self.vector(g, role, part)], None)
        name = f"{role}.{form.name}"
        return Matrix(self._value(g, name, part), form, self._constants(g, name, part, form))

    def rows(self, g: Graph, role: str) -> list[Value]:
        """A matrix from which rows are looked up: floats; or integers, a byte each, and one scale for each row."""
        scheme = self.target.scheme_of(role)
        if scheme is None:
            return [self.vector(g, role, role)]
        return self._value(g, f"{role}.int{scheme.bits}", role, lambda: self._rounded_rows(role, scheme))

    def packed_rows(self, g: Graph, role: str) -> Matrix | None:
        """The same of four bits, packed as `matrix` packs them, with scales (rows, blocks, 1). Where a head is the same
        matrix, held in the same way, both share the bytes."""
        scheme = self.target.scheme_of(role)
        if scheme is None or scheme.bits != 4 or self.rows_in_blocks(g, role) is not None:
            return None
        name = f"{role}.int4.rows"
        if (role, name) not in self._forms:
            made = quantized_rows(self.read(role), scheme, self.target.int4.block, role)
            self._forms[role, name] = None if made is None else Form(4, made.block, *made.shape)
            if made is not None:
                integers, *_ = self.encode(made)
                self._keep(name, role, [integers, self._as_floats(made.scales[..., None])], scheme.name)
        form = self._forms[role, name]
        return Matrix([self.vector(g, role, role)], None) if form is None else Matrix(self._value(g, name, role), form)

    def rows_in_blocks(self, g: Graph, role: str) -> Matrix | None:
        """The same, where its integers (rows, width), a byte each, were made before: scales (rows, blocks)."""
        if self.target.scheme_of(role) is None:
            return None
        name = f"{role}.blocks"
        if (role, name) not in self._forms:
            self._forms[role, name] = self._rows_made(role, name)
        form = self._forms[role, name]
        return None if form is None else Matrix(self._value(g, name, role), form, self._constants(g, name, role, form))

    def _rows_made(self, role: str, name: str) -> Form | None:
        made = self.made(role)
        if made is None:
            return None
        made = symmetric(made)
        self._keep(name, role, [made.integers.reshape(made.shape), self._as_floats(made.scales)], "int8")
        if made.constants is not None:
            self._keep(f"{name}.constant", role, [self._as_floats(made.constants)])
        return Form(8, made.block, *made.shape, constants=made.constants is not None)

    def _constants(self, g: Graph, name: str, part: str, form: Form) -> Value | None:
        return self._value(g, f"{name}.constant", part)[0] if form.constants else None

    def own_name(self, g: Graph, role: str, value: Value) -> Value:
        """The same tensor under a name of its own in each loop: TensorRT-RTX 1.7.1 fails to build a network whose
        levels read one INT4 constant (Myelin: empty runtime-fusion MVMF). It keeps equal constants once; saving.py
        too."""
        if g.level == 0:
            return value
        key = f"{role}@{g.level}"
        if key not in self._values:
            assert value.const_value is not None
            self._values[key] = [g.weight(role, value.const_value)]
        return self._values[key][0]

    def another_graph(self) -> None:
        """What is written next belongs to another model, which names the same weights again."""
        self._values.clear()

    def _as_floats(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.floats.numpy(), copy=False)

    def _as_layers_hold(self, role: str, weight: np.ndarray) -> np.ndarray:
        """What the integers of `layers` stand for: chunks and single tokens go through one model."""
        scheme = self.target.scheme_for(role, "layers")
        made = None if scheme is None else self._quantized(role, scheme, weight)
        return weight if made is None else made.dequantize()

    def _quantized(self, role: str, scheme: Scheme, weight: np.ndarray) -> Quantized | None:
        found = None if scheme.by_row else self.made(role)
        if found is not None:
            assert found.shape == weight.shape, f"{role}: {found.shape} integers for {weight.shape} weights"
            return found
        int4 = self.target.int4
        return quantized(weight, scheme, int4.block, role, self.calibrate(role), int4.method)

    def _round(self, role: str, scheme: Scheme, part: str, weight: np.ndarray) -> None:
        """Makes the integers of a matrix, or leaves it float where no block divides its width."""
        made = self._quantized(role, scheme, weight)
        if made is None:
            self._forms[role, scheme.name] = None
            return None if part == CHUNKS else self._keep(role, part, [self._as_floats(weight)])
        constants = made.constants
        form = Form(made.bits, made.block, *made.shape, scheme.by_row, constants is not None, made.is_float)
        self._forms[role, scheme.name] = form
        self.errors[role if part != CHUNKS else f"{role}.{form.name}"] = error_of(weight, made)
        del weight  # of a vocabulary it has a gigabyte, which the encoding would stand beside
        integers, *others = by_row(made) if form.by_row else self.encode(made)
        name, kind = f"{role}.{form.name}", kind_of(made, scheme)
        self._keep(name, part, [integers, *map(self._scaling, others)], kind)
        if constants is not None:
            self._keep(f"{name}.constant", part, [self._as_floats(constants.T)], kind)

    def _scaling(self, array: np.ndarray) -> np.ndarray:
        """Scales in the activations' type; offsets, and scales of eight bits, as they are."""
        return self._as_floats(array) if array.dtype == np.float32 else array

    def _rounded_rows(self, role: str, scheme: Scheme) -> list[np.ndarray]:
        made = quantized_rows(self.read(role), scheme, self.target.int4.block, role)
        assert made is not None, "rows of bytes have no blocks"
        self._kinds.setdefault(role, {})[scheme.name] = made.integers.nbytes
        return [made.integers[:, 0], self._as_floats(made.scales[:, 0])]

    def _value(
        self, g: Graph, role: str, part: str, make: Callable[[], list[np.ndarray]] | None = None
    ) -> list[Value]:  # fmt: skip
        """The stored arrays of a weight; the first call makes them, where they were not kept before."""
        if role not in self._tensors:
            assert make is not None
            self._keep(role, part, make())
        if role not in self._values:
            tensors = self._tensors[role]
            named = zip(("", ".scale", ".zero"), tensors, strict=False)
            self._values[role] = [g.weight(f"{role}{end}", tensor) for end, tensor in named]
        return self._values[role]

    @property
    def held(self) -> dict[str, str]:
        """Part -> how most of its bytes are held: a scheme's name, fp32 or fp16."""
        return {part: max(sizes, key=lambda kind: sizes[kind]) for part, sizes in self._kinds.items()}

    def _keep(self, role: str, part: str, arrays: list[np.ndarray], kind: str | None = None) -> None:
        tensors: list[ir.TensorProtocol] = []
        size = 0
        for made in (ir.tensor(np.ascontiguousarray(array)) for array in arrays):
            key = _sameness(made) if part in _MAY_BE_ONE and made.dtype == ir.DataType.UINT8 else None
            kept = self._shared.get(key)
            if kept is None:
                size += made.nbytes
                kept = made if self.file is None else self.file.take(made)
                if key is not None:
                    self._shared[key] = kept
            tensors.append(kept)
        self.part_bytes[part] = self.part_bytes.get(part, 0) + size
        kinds = self._kinds.setdefault(part, {})
        kind = kind or ("fp16" if arrays[0].dtype == np.float16 else "fp32")
        kinds[kind] = kinds.get(kind, 0) + size
        self._tensors[role] = tensors


def _sameness(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for bytes that can stand for each other."""
    return tuple(tensor.shape), hashlib.blake2b(tensor.numpy().data).digest()
